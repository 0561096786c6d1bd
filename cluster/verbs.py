"""The verbs of the command line, and where each one's config and job are defined."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VERBS", "Verb"]


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line: where its config and its job are defined.

    Args:
        help: one line for the list of verbs.
        module: imported when the verb is used.
        config: name of its config dataclass.
        job: name of its function.
        uses_ray: whether it may start Ray, and so takes the address of a cluster to join.
    """

    help: str
    module: str
    config: str
    job: str
    uses_ray: bool = False


VERBS = {
    "scan": Verb(
        "list a folder's pictures into a corpus", "cluster.scan_job", "ScanConfig", "scan"
    ),
    "pretrain": Verb(
        "train an encoder on a corpus, without labels",
        "cluster.pretrain_job",
        "PretrainJobConfig",
        "pretrain",
        uses_ray=True,
    ),
    "embed": Verb(
        "turn every picture of a corpus into a vector",
        "cluster.embed_job",
        "EmbedConfig",
        "embed",
        uses_ray=True,
    ),
    "index": Verb(
        "make the vectors searchable at a measured recall",
        "cluster.index_job",
        "IndexJobConfig",
        "index_embeddings",
        uses_ray=True,
    ),
    "versions": Verb(
        "list the versions of an index, put an older one in service, delete old ones",
        "cluster.versions_job",
        "VersionsConfig",
        "show_versions",
    ),
    "remove": Verb(
        "have pictures be no results of an index, or take that back",
        "cluster.remove_job",
        "RemoveConfig",
        "remove",
        uses_ray=True,
    ),
    "compact": Verb(
        "fold what was added to an index into its parts, and drop what was removed",
        "cluster.compact_job",
        "CompactConfig",
        "compact",
        uses_ray=True,
    ),
    "graph": Verb(
        "find neighbours, near-duplicates, outliers and a map of an index",
        "cluster.graph_job",
        "GraphJobConfig",
        "find_relations",
    ),
    "evaluate": Verb(
        "compare encoders with each other, untrained ones and raw pixels",
        "cluster.evaluate_job",
        "EvaluateConfig",
        "evaluate",
        uses_ray=True,
    ),
    "search": Verb(
        "find the pictures most like some, among those that a filter leaves",
        "cluster.search_job",
        "SearchConfig",
        "search",
    ),
    "classify": Verb(
        "train a classifier on a few labels and predict the corpus",
        "cluster.classify_job",
        "ClassifyConfig",
        "classify",
    ),
    "export": Verb(
        "write an encoder for programs without lookalike",
        "cluster.export_job",
        "ExportConfig",
        "export",
    ),
    "import": Verb(
        "make an encoder from weights of torchvision, timm or a file",
        "cluster.import_job",
        "ImportConfig",
        "import_encoder",
    ),
    "ui": Verb("search, label and classify in the browser", "ui.app", "UiConfig", "serve"),
    "verify": Verb(
        "check that the number of workers does not change what is learnt",
        "cluster.verify_job",
        "VerifyConfig",
        "verify",
        uses_ray=True,
    ),
    "doctor": Verb(
        "check this machine, the workspace and Ray",
        "cluster.doctor",
        "DoctorConfig",
        "doctor",
        uses_ray=True,
    ),
    "demo": Verb(
        "walk the whole road on OpenMoji pictures, then open the browser app",
        "cluster.demo_job",
        "DemoConfig",
        "demo",
        uses_ray=True,
    ),
}
