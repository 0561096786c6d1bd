"""One FAISS file: trained, filled, written, memory-mapped, searched.

Codes are the float16 vectors themselves (no residuals), so the only approximation is which lists
are visited, and visiting all of them is exact search.

Shapes: Q queries, N rows, D embedding, K results a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss as faiss_library
import numpy as np

from index.choose import Recipe
from index.vectors import Floats, Ids

__all__ = ["Part", "train_template"]

faiss: Any = faiss_library  # its type stubs know neither index attributes nor search parameters

NO_IDS = np.empty(0, np.int64)


def train_template(recipe: Recipe, dim: int, sample_ND: Floats, *, seed: int) -> Any:
    """An empty FAISS index, trained on a random sample of unit vectors; parts are copies of it."""
    if recipe.kind == "exact":
        flat = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        return faiss.IndexIDMap(flat)
    template = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    template.by_residual = False
    template.cp.seed = seed + 1  # 0 would mean a random seed
    template.cp.min_points_per_centroid = 1  # recipes keep to FAISS's minimum; tests may not
    template.train(np.ascontiguousarray(sample_ND))
    return template


class Part:
    """A filled FAISS index. Searching is safe from many threads.

    Attributes:
        num_rows: vectors in it.
        nlist: inverted lists; 1 for an exact scan.
    """

    def __init__(self, faiss_index: Any) -> None:
        self._faiss = faiss_index
        self._is_ivf = isinstance(faiss_index, faiss.IndexIVF)
        self.num_rows = int(faiss_index.ntotal)
        self.nlist = int(faiss_index.nlist) if self._is_ivf else 1

    @classmethod
    def fill(cls, template: Any, batches: Iterable[tuple[Ids, Floats]]) -> Part:
        """A copy of the template with all batches added under their ids."""
        filled = faiss.clone_index(template)
        expected = 0
        for ids, vectors in batches:
            filled.add_with_ids(np.ascontiguousarray(vectors), ids)
            expected += len(ids)
        part = cls(filled)
        # FAISS drops rows that are not finite without a word; the store has refused them before.
        assert part._num_stored() == part.num_rows == expected, "FAISS dropped rows"
        return part

    @classmethod
    def open(cls, path: Path) -> Part:
        """Memory-map a file of ``write``."""
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise ValueError(f"{path}: not a FAISS index. Build the index again.") from error

    def write(self, path: str) -> None:
        """Write the FAISS file; not atomic by itself."""
        faiss.write_index(self._faiss, path)

    def search(
        self,
        queries_QD: Floats,
        k: int,
        *,
        nprobe: int,
        exclude: Ids | None = None,
        selector: Any = None,
    ) -> tuple[Floats, Ids]:
        """Nearest rows in the lists visited: inner products [Q, K] and ids [Q, K], -1 for none.

        Parameters travel with the call; nothing of the index is set, so threads cannot disturb
        each other.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: results a query, fewer if there are fewer rows.
            nprobe: lists to visit.
            exclude: ids that are no results.
            selector: FAISS's selector of the ids that may be results, instead of ``exclude``.
        """
        if exclude is not None and len(exclude):
            batch = faiss.IDSelectorBatch(exclude)
            selector = faiss.IDSelectorNot(batch)
        if self._is_ivf:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(nprobe, self.nlist))
        else:
            parameters = faiss.SearchParameters(sel=selector)
        scores, ids = self._faiss.search(queries_QD, min(k, self.num_rows), params=parameters)
        return scores, ids

    def search_lists(
        self, queries_QD: Floats, k: int, lists_QP: Ids, closeness_QP: Floats, selector: Any
    ) -> tuple[Floats, Ids]:
        """As `search`, in the lists named for each query; a list of -1 is none.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: results a query.
            lists_QP: int64 numbers of lists, C-contiguous.
            closeness_QP: float32 inner products of the queries with these lists' centroids.
            selector: FAISS's selector of the ids that may be results.
        """
        num_queries, nprobe = lists_QP.shape
        scores = np.empty((num_queries, k), np.float32)
        ids = np.empty((num_queries, k), np.int64)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
        # FAISS's wrapper for arrays takes nprobe from the shared index, and no parameters.
        arrays = (faiss.swig_ptr(a) for a in (lists_QP, closeness_QP, scores, ids))
        self._faiss.search_preassigned_c(
            num_queries, faiss.swig_ptr(queries_QD), k, *arrays, False, parameters
        )
        return scores, ids

    def centroids(self) -> Floats | None:
        """Centroids of the inverted lists, float32 [nlist, D]; None if there are none."""
        return self._faiss.quantizer.reconstruct_n(0, self.nlist) if self._is_ivf else None

    def ids_by_list(self) -> Iterator[Ids]:
        """The ids in every inverted list."""
        lists = self._faiss.invlists
        for number in range(self.nlist):
            size = int(lists.list_size(number))
            yield faiss.rev_swig_ptr(lists.get_ids(number), size).copy() if size else NO_IDS

    def _num_stored(self) -> int:
        if not self._is_ivf:
            return int(self._faiss.id_map.size())
        lists = self._faiss.invlists
        return sum(int(lists.list_size(number)) for number in range(self.nlist))
