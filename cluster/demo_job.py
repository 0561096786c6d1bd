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

from cluster.context import Context
from cluster.embed_job import EmbedConfig, embed
from cluster.evaluate_job import EvaluateConfig, evaluate
from cluster.index_job import IndexJobConfig, index_embeddings
from cluster.openmoji import ATTRIBUTION, draw_openmoji
from cluster.pretrain_job import PretrainJobConfig, pretrain
from cluster.scan_job import ScanConfig, scan
from encoders.recipes import simclr_small
from index.artifact import MissingArtifactError, open_door, publish

__all__ = ["DemoConfig", "demo"]

CORPUS = "openmoji"
ENCODER = "simclr"
INDEX = f"{CORPUS}-{ENCODER}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Walk the whole road on OpenMoji pictures, then open the browser app."""

    ui: bool = True
    """Open the web application at the end; --no-ui ends with the table."""
    port: int = 7860
    """Port of the web application, on this machine only."""


def demo(config: DemoConfig, context: Context) -> dict[str, Any]:
    """Draw, scan, pretrain, embed, index and evaluate; returns what was built, and how good."""
    del config  # the command line opens the application with it
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
    step(
        "draw",
        lambda: {"path": str(draw_openmoji(pictures, context))},
        lambda _: "OpenMoji, 192 px",
    )
    scanned = ScanConfig(folder=str(pictures), corpus=CORPUS, labels="folder")
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
            lambda: _evaluate_once(EvaluateConfig(corpus=CORPUS, encoder=ENCODER), context),
            lambda r: f"{r['num_queries']:,} queries",
        )
    return {
        "steps": steps,
        "evaluation": measured,
        "index_recall": built["recall"]["text"],
        "index": INDEX,
        "attribution": ATTRIBUTION,
    }


def _evaluate_once(config: EvaluateConfig, context: Context) -> dict[str, Any]:
    """The evaluation of this very encoder, kept beside it once it has been measured."""
    folder = context.workspace.folder("encoders", config.encoder)
    encoder_id = open_door(folder, "encoder", door="card.json", verify="sizes")["id"]
    try:
        kept = open_door(folder, "evaluation")
        if kept["parents"]["encoder_id"] == encoder_id:
            return dict(kept["report"])
    except MissingArtifactError:
        pass
    report = {**evaluate(config, context), "path": str(folder)}
    parents = {"encoder_id": encoder_id}
    publish(folder, "evaluation", {"id": encoder_id, "parents": parents, "report": report}, [])
    return report
