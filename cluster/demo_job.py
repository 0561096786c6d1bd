"""demo: the whole road on real pictures, from nothing to the browser, on two CPU cores in minutes.

Every step is the verb of that name with plain settings; what an earlier demo finished is used
again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cluster.checks import why_taken
from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.evaluate_job import EvaluateConfig, evaluate
from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.openmoji import ATTRIBUTION, draw_openmoji
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.scan_job import ScanConfig, scan
from encoders.recipes import simclr_small

__all__ = ["DemoConfig", "demo"]

CORPUS = "openmoji"
ENCODER = "simclr"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Walk the whole road on OpenMoji pictures, then open the browser app."""

    ui: bool = True
    """Open the web application at the end; --no-ui ends with the table."""
    port: int = 7860
    """Port of the web application, on this machine only; 0 takes a free one."""

    def __post_init__(self) -> None:
        """Check the port."""
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port {self.port}: allowed are 0 to 65535. Choose another --port.")


def demo(config: DemoConfig, context: Context) -> dict[str, Any]:
    """Draw, scan, pretrain, embed, index and evaluate; returns what was built, and how good.

    Raises:
        ValueError: the port that the application is to listen on afterwards is taken.
    """
    if config.ui:
        _require_free(config.port)
    steps: list[dict[str, Any]] = []

    def step(name: str, run: Callable[[], dict[str, Any]], result: Callable[[Any], str]) -> Any:
        started_s = time.monotonic()
        report = run()
        seconds = time.monotonic() - started_s
        steps.append(
            {"step": name, "result": result(report), "path": report["path"], "seconds": seconds}
        )
        return report

    pictures = context.workspace.root.local_path() / "pictures" / CORPUS
    drawn = step(
        "draw",
        lambda: {"path": str(draw_openmoji(pictures, context))},
        lambda _: "OpenMoji, 192 px",
    )
    scanned = ScanConfig(source=drawn["path"], corpus=CORPUS, labels="folder")
    step("scan", lambda: scan(scanned, context), lambda r: f"{r['pictures']['ok']:,} pictures")
    trained = PretrainJobConfig(corpus=CORPUS, name=ENCODER, training=simclr_small())
    embedded = EmbedConfig(corpus=CORPUS, encoder=ENCODER)
    with contextlib.ExitStack() as lease:
        context = replace(context, lease=lease)
        step("pretrain", lambda: pretrain(trained, context), lambda r: f"loss {r['loss']:.3f}")
        step("embed", lambda: embed(embedded, context), lambda r: f"{r['dim']} dimensions")
        built = step(
            "index",
            lambda: index_embeddings(IndexJobConfig(corpus=CORPUS, encoder=ENCODER), context),
            lambda r: r["version"],
        )
        measured = step(
            "evaluate",
            lambda: evaluate(EvaluateConfig(corpus=CORPUS, encoder=(ENCODER,)), context),
            lambda r: f"{r['num_queries']:,} queries",
        )
    return {
        "steps": steps,
        "evaluation": measured,
        "index_recall": built["recall"]["text"],
        "index": built["index"],
        "attribution": ATTRIBUTION,
    }


def _require_free(port: int) -> None:
    if reason := why_taken(port):
        raise ValueError(
            f"port {port}: is taken ({reason}), and the application needs a free one at the end. "
            "Stop what uses it, choose another --port, or give --no-ui."
        )
