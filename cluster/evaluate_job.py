"""evaluate: are encoders worth their training? Compared with untrained twins and raw pixels.

1. Draw a sample of the corpus. 2. Distort some of it: cropped, shifted, recoloured and blurred
copies whose originals have to be found, which needs no labels. 3. Embed both with each source of
vectors. 4. Where the corpus has labels, measure search by class and classification as well. 5.
Publish figures and a plot of them as ``evaluations/NAME``; the same evaluation is made once.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.catalog import Catalog, open_corpus
from cluster.contenders import (
    Entrant,
    Source,
    Vectors,
    draw_sample,
    embed_sources,
    read_entrants,
    sources_of,
)
from cluster.context import Context
from cluster.evaluate_plot import plot_svg
from cluster.figures import FigureConfig, compare, labelled_sample, measure
from cluster.shard_job import check_error_budget
from cluster.workspace import check_name
from index.artifact import (
    CorruptArtifactError,
    MissingArtifactError,
    digest,
    library_versions,
    open_door,
    publish,
)
from index.folder import Folder
from index.lock import sole_writer

__all__ = ["EvaluateConfig", "evaluate"]

logger = logging.getLogger(__name__)

FIGURES_RULE = 1
"""Changes with the meaning of any figure, so that none is compared with one of another meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(FigureConfig):
    """Compare encoders with each other, untrained ones and raw pixels, on the same pictures."""

    corpus: str
    """Name of the corpus."""
    encoder: tuple[str, ...]
    """Names of the encoders, one or several."""
    name: str | None = None
    """Name of the evaluation; CORPUS-ENCODER, with all the encoders, unless given."""
    num_pictures: int = 10_000
    """Pictures to search among; a random sample when the corpus has more."""
    num_queries: int = 1_000
    """Distorted copies whose originals have to be found."""
    seed: int = 0
    """Seed of the sample, the distortions, the splits and draws, and the untrained encoders."""
    error_budget: float = 0.25
    """Share of undecodable pictures at which the job stops."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        FigureConfig.__post_init__(self)
        check_name(self.corpus, what="corpus")
        if not self.encoder or len(set(self.encoder)) < len(self.encoder):
            raise ValueError(
                f"encoder {self.encoder}: one or more names, each once. To compare two: "
                "--encoder ONE OTHER"
            )
        for encoder in self.encoder:
            check_name(encoder, what="encoder")
        check_name(self.evaluation, what="evaluation --name")
        for name in ("num_pictures", "num_queries"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} {getattr(self, name)}: has to be at least 1. Leave --"
                    f"{name.replace('_', '-')} out for the usual number."
                )
        check_error_budget(self.error_budget)

    @property
    def evaluation(self) -> str:
        """The name it has."""
        return self.name or "-".join([self.corpus, *self.encoder])


def evaluate(config: EvaluateConfig, context: Context) -> dict[str, Any]:
    """Measure search, and with labels classification, for each source of vectors.

    What was measured of these encoders on this corpus with this configuration is reported again;
    anything else of this name is replaced.

    Returns:
        ``figures`` as `compare` gives them, shares in [0, 1]; ``sources`` and ``encoders`` say what
        was compared, ``notes`` what a reader has to know; ``path`` and ``plot``, where they lie.

    Raises:
        MissingArtifactError: there is no such corpus or encoder.
        ValueError: the corpus has too few pictures, or another process evaluates under this name.
    """
    catalog = open_corpus(context.workspace, config.corpus)
    entrants = read_entrants(context.workspace, config.encoder)
    folder = context.workspace.folder("evaluations", config.evaluation)
    parents = {
        "corpus_id": catalog.corpus_id,
        "encoders": {entrant.name: entrant.card["id"] for entrant in entrants},
        "config_id": digest([FIGURES_RULE, asdict(config)]),
    }
    kept = _kept(folder, parents)
    if kept is None:
        with sole_writer(folder, "evaluating under this name"):
            kept = _publish(folder, _measure(config, catalog, entrants, context), parents)
    (plot,) = kept["files"]
    return {**kept["report"], "path": str(folder), "plot": str(folder / plot)}


def _measure(
    config: EvaluateConfig, catalog: Catalog, entrants: list[Entrant], context: Context
) -> dict[str, Any]:
    sample = draw_sample(
        catalog,
        entrants,
        context,
        num=(config.num_pictures, config.num_queries),
        seed=config.seed,
        error_budget=config.error_budget,
    )
    labels = catalog.labels(sample.ids)
    labelled = labelled_sample(labels, config, config.seed)
    sources = sources_of(entrants)
    notes = [*_provenance(entrants, catalog, bool(labelled.names)), *labelled.notes]
    measured = {}
    with context.progress("evaluate", len(sources), "sources") as line:
        embedded = embed_sources(sample, sources, context.workspace, config.seed)
        for source, vectors, queries in embedded:
            notes += _blanked(source, vectors, queries)
            measured[source.name] = measure(vectors, queries, sample, labelled, config, config.seed)
            line.advance(1, source.name)
    return {
        "corpus": config.corpus,
        "corpus_id": catalog.corpus_id,
        "encoders": [_facts(entrant) for entrant in entrants],
        "sources": [_column(source) for source in sources],
        "num_pictures": len(sample.ids),
        "num_queries": len(sample.query_ids),
        "num_labelled": len(labelled.names),
        "num_classes": len(set(labelled.names)),
        "config": _as_json(config),
        **compare(measured, _rivals(sources)),
        "notes": notes,
    }


def _rivals(sources: list[Source]) -> dict[str, list[str]]:
    """The baselines of each encoder's layers: its own untrained twin, and raw pixels."""
    return {
        source.name: [
            other.name
            for other in sources
            if other.is_baseline
            and (other.entrant is None or other.entrant.twin == source.entrant.twin)
        ]
        for source in sources
        if source.entrant is not None and not source.is_baseline
    }


def _blanked(source: Source, vectors: Vectors, queries: Vectors) -> list[str]:
    """Make vectors without a direction zero, which is like nothing; says how many there were."""
    num_bad = 0
    for array in (vectors, queries):
        bad = ~np.isfinite(array).all(axis=1)
        array[bad] = 0
        num_bad += int((~array.any(axis=1)).sum())
    if not num_bad:
        return []
    total = len(vectors) + len(queries)
    return [f"{source.name}: {num_bad:,} of {total:,} vectors are zero or not finite: they miss."]


def _provenance(entrants: list[Entrant], catalog: Catalog, has_labels: bool) -> list[str]:
    """What each encoder has learnt from: figures of pictures it knows are not those of new ones."""
    notes = []
    for entrant in entrants:
        seen = entrant.card["parents"].get("corpus_id") == catalog.corpus_id
        method = entrant.card.get("training", {}).get("recipe", {}).get("method", {}).get("name")
        if entrant.origin == "imported":
            source = entrant.card["imported"].get("source", "elsewhere")
            notes.append(
                f"{entrant.name} is imported ({source}): whether it learnt from pictures like "
                "these is not known."
            )
        elif seen:
            what = "these very pictures"
            if method == "supcon" and has_labels:
                what += " and their labels, so that no figure by class can be trusted"
            notes.append(f"{entrant.name} has learnt from {what}; on new ones expect less.")
        else:
            notes.append(f"{entrant.name} has learnt from another scan or corpus.")
    return notes


def _facts(entrant: Entrant) -> dict[str, Any]:
    return {
        "name": entrant.name,
        "encoder_id": entrant.card["id"],
        "origin": entrant.origin,
        "learnt_from": entrant.card["parents"].get("corpus_id"),
        "backbone": entrant.config.backbone.name,
        "size": entrant.look.size,
        "fit": entrant.look.fit,
        "dims": entrant.card["dims"],
    }


def _column(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "origin": source.origin,
        "encoder": source.entrant.name if source.entrant else None,
        "layer": source.layer,
    }


def _as_json(config: EvaluateConfig) -> dict[str, Any]:
    """JSON has lists for tuples."""
    values = asdict(config).items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def _publish(folder: Folder, report: dict[str, Any], parents: dict[str, Any]) -> dict[str, Any]:
    svg = plot_svg(report).encode()
    name, record = folder.write_by_content(
        "plot-{sha256}.svg", lambda path: Path(path).write_bytes(svg)
    )
    body = {
        "id": digest([parents, report["figures"]]),
        "config": report["config"],
        "parents": parents,
        "rows": {key: report[f"num_{key}"] for key in ("pictures", "queries", "labelled")},
        "versions": library_versions("numpy", "scikit-learn", "torch", "torchvision"),
        "report": report,
    }
    door = publish(folder, "evaluation", body, {name: record})
    folder.remove_others("plot-", keep=[name])
    return door


def _kept(folder: Folder, parents: dict[str, Any]) -> dict[str, Any] | None:
    try:
        door = open_door(folder, "evaluation")
    except (MissingArtifactError, CorruptArtifactError) as error:
        logger.info("the encoders are evaluated: %s", error)
        return None
    return door if door["parents"] == parents else None
