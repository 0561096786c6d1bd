"""The page: Gradio lays out the tabs; each holds one browser component that talks to ``/v1``.

Every template here is a constant. Gradio runs what stands in an HTML template as code, so a file
name or a label must never reach one: data travels over ``/v1``, and ``textContent`` shows it.
"""

from __future__ import annotations

import gradio as gr

__all__ = ["HEAD", "build_blocks"]

HEAD = """
<meta name="color-scheme" content="light dark">
<link rel="stylesheet" href="/parts/app.css">
<script type="module" src="/parts/main.js"></script>
"""

HELP = """
**Search.** Drop, paste or choose a picture, or pick one from the grid. `Tab` reaches the grid,
arrow keys move in it, `Enter` shows what is like the picture.

**Label.** `1` to `9` give the class of that number, `S` skips, `Z` takes the last answer back.
Keys rest while you type in a box. Every fourth picture is an *audit* picture, drawn at random: only
those measure the classifier honestly.

**Classify.** Training takes a moment and goes on when you close the page. The export holds every
picture with its class and probability.

**Runs.** Curves refresh every two seconds while a run is going.
"""

API_EXAMPLE = """\
# the ten pictures most like query.jpg
curl -F index=INDEX -F k=10 -F picture=@query.jpg http://127.0.0.1:7860/v1/search

# predictions of the whole corpus
curl -o predictions.parquet 'http://127.0.0.1:7860/v1/export?index=INDEX&format=parquet'
"""


def component(tag: str) -> gr.HTML:
    """One of our browser components; it finds its data itself."""
    return gr.HTML(
        html_template=f"<{tag}></{tag}>",
        js_on_load=None,
        apply_default_css=False,
        elem_id=f"la-part-{tag.removeprefix('la-')}",
    )


def build_blocks() -> gr.Blocks:
    """Lay out the page."""
    blocks = gr.Blocks(
        title="lookalike", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True
    )
    with blocks:
        component("la-header")
        with gr.Tabs(elem_id="la-tabs"):
            for title in ("Search", "Label", "Classify", "Runs"):
                with gr.Tab(title):
                    component(f"la-{title.lower()}")
        with gr.Accordion("Keys and tips", open=False, elem_id="la-help"):
            gr.Markdown(HELP)
        with gr.Accordion("Use it from code", open=False, elem_id="la-code"):
            gr.Code(API_EXAMPLE, language="shell", interactive=False, show_label=False)
    return blocks
