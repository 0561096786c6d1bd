"""What the automatic recipes have to know of a corpus, the same for all of a run's life."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pyarrow.compute as pc

from cluster.catalog import Catalog, open_corpus
from cluster.runlog import read_run
from cluster.workspace import Workspace, check_name
from encoders.recipes_auto import AUTO_RECIPES, Automatic, auto_config

__all__ = ["CorpusFacts", "choose", "facts_of"]


class CorpusFacts(TypedDict):
    """How many pictures can be trained on, and the median of their shorter edges in pixels."""

    num_pictures: int
    edge: int


def choose(recipe: str, corpus: str, run: str, workspace: Workspace) -> Automatic:
    """Settings for a corpus; those of a run that has begun do not change with later scans.

    Args:
        recipe: a name of `AUTO_RECIPES`.
        corpus: name of the corpus.
        run: name of the run, which may be there already.
        workspace: where both are.

    Raises:
        MissingArtifactError: there is no such corpus.
        ValueError: it holds fewer than two pictures.
    """
    check_name(corpus, what="corpus")
    check_name(run, what="encoder")
    begun = read_run(workspace.folder("runs", run))
    facts: CorpusFacts | None = begun.get("corpus_facts")
    if facts is None or begun["corpus"] != corpus:
        facts = facts_of(open_corpus(workspace, corpus))
    method, hardware = AUTO_RECIPES[recipe]
    return auto_config(method, facts["num_pictures"], facts["edge"], hardware)


def facts_of(catalog: Catalog) -> CorpusFacts:
    """Measure a catalog; an empty one gives zeros."""
    edges = pc.drop_null(pc.min_element_wise(catalog.ok["width"], catalog.ok["height"]))
    edge = round(float(np.median(edges.to_numpy()))) if len(edges) else 0
    return CorpusFacts(num_pictures=len(catalog.ok), edge=edge)
