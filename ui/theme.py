"""How the application looks: Gradio's own parts in the colours and type of our stylesheet."""

from __future__ import annotations

import gradio as gr

__all__ = ["make_theme"]

ACCENT = gr.themes.Color(
    name="lagoon",
    c50="#effcf9",
    c100="#d3f6ee",
    c200="#a8ebdf",
    c300="#74d9cb",
    c400="#42bfb2",
    c500="#22a398",
    c600="#0f827a",
    c700="#106863",
    c800="#125350",
    c900="#134543",
    c950="#042a2a",
)
# System fonts only: the page must not ask another machine for anything.
TEXT_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def make_theme() -> gr.themes.Base:
    """The theme: one accent colour, quiet surfaces, light and dark."""
    theme = gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=TEXT_FONT,
        font_mono=MONO_FONT,
    )
    return theme.set(
        body_background_fill="#fbfbfa",
        body_background_fill_dark="#121316",
        body_text_color="#1d1f23",
        body_text_color_dark="#e9eaec",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1a1c20",
        border_color_primary="#e5e6e3",
        border_color_primary_dark="#2c2f35",
        block_border_width="0px",
        block_shadow="none",
    )
