"""One FAISS file: filled, written, memory-mapped, searched.

Codes are the float16 vectors themselves, so that visiting all lists is exact search; or 4-bit
codes, of a vector or of what is left of it without the centroid of its list, which only propose,
and whose exact search is a scan of the stored vectors (`index.rank`). A graph links float16
vectors, and its exact search is a scan of them.

Shapes: Q queries, N rows, D embedding, K results a query.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss as faiss_library
import numpy as np
from numpy.typing import NDArray

from index.coarse import Coarse
from index.faiss_file import read_faiss, write_faiss
from index.faiss_search import FaissSearch
from index.hnsw import Graph
from index.vectors import Floats, Ids

__all__ = [
    "Part",
    "one_thread",
    "set_threads",
]

faiss: Any = faiss_library  # its type stubs know neither index attributes nor search parameters

NO_IDS = np.empty(0, np.int64)

MOST_KEPT = 256
"""Prepared searches that a part keeps: to prepare one takes longer than some searches."""


def set_threads(count: int) -> None:
    """Threads that FAISS may use for calls from this thread."""
    faiss.omp_set_num_threads(count)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A block in which FAISS uses this thread alone."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


class Part:
    """A filled FAISS index. Searching is safe from many threads.

    Attributes:
        num_rows: vectors in it.
        nlist: the most effort a search can make: inverted lists; 1 for an exact scan, the
            entries that a graph looks at.
        lossy: whether codes are short, so that the most effort may still miss a neighbour.
        is_graph: whether effort is what a graph keeps in sight, and the most a scan.
        coarse: finds the lists; None if there are none.
        path: the file that it was opened from; None of one that was filled.

    Args:
        faiss_index: filled.
        coarse: of the same centroids, if there is one; else its own.
    """

    def __init__(self, faiss_index: Any, coarse: Coarse | None = None) -> None:
        self._faiss = faiss_index
        self._is_ivf = isinstance(faiss_index, faiss.IndexIVF)
        self._is_fp16 = isinstance(faiss_index, faiss.IndexIVFScalarQuantizer)
        self._kept: dict[tuple[int, int], Callable[[Floats], tuple[Floats, Ids]]] = {}
        self._visiting: dict[int, Any] = {}
        self.path: Path | None = None
        self.num_rows = int(faiss_index.ntotal)
        self.nlist = int(faiss_index.nlist) if self._is_ivf else 1
        self.coarse = coarse
        if coarse is None and self._is_ivf:
            self.coarse = Coarse(faiss_index.quantizer, owner=faiss_index)
        self.is_graph = not self._is_ivf and isinstance(
            faiss.downcast_index(faiss_index.index), faiss.IndexHNSW
        )
        self._graph = Graph(faiss_index) if self.is_graph else None
        if self._graph is not None:
            self.nlist = self._graph.most
        self.lossy = isinstance(faiss_index, faiss.IndexIVFPQFastScan)
        self._of_residuals = self.lossy and bool(faiss_index.by_residual)

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

    def lay_out(self, places_N: Ids) -> None:
        """Put the row that lies at ``places_N[r]`` of a graph at place r; [N], each place once."""
        assert self._graph is not None, "only the rows of a graph may lie in any order"
        self._graph.lay_out(places_N)

    @classmethod
    def open(cls, path: Path, coarse: Coarse | None = None) -> Part:
        """Memory-map a file of ``write``; 4-bit codes are read into memory."""
        part = cls(read_faiss(path, mapped=True), coarse)
        part.path = path
        return part

    def write(self, path: str) -> None:
        """Write the FAISS file; not atomic by itself."""
        write_faiss(self._faiss, path)

    def search(
        self,
        queries_QD: Floats,
        k: int,
        *,
        nprobe: int,
        selector: Any = None,
        nearest: tuple[Floats, Ids] | None = None,
    ) -> tuple[Floats, Ids]:
        """Nearest rows in the lists visited: inner products [Q, K] and ids [Q, K], -1 for none.

        Parameters travel with the call; nothing of the index is set, so threads cannot disturb
        each other.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: results a query, fewer if there are fewer rows.
            nprobe: lists to visit, or what a graph keeps in sight, at least k.
            selector: FAISS's selector of the ids that may be results; None for all.
            nearest: those lists, if they are known, as from `Coarse.proposed`.
        """
        if nearest is None:
            return self.prepared(k, nprobe=nprobe, selector=selector)(queries_QD)
        effort, k = min(nprobe, self.nlist), min(k, self.num_rows)
        parameters = self._parameters(effort, selector)
        return _search_lists(self._faiss, queries_QD, k, *nearest, parameters)

    def prepared(
        self, k: int, *, nprobe: int, selector: Any = None
    ) -> Callable[[Floats], tuple[Floats, Ids]]:
        """`search` of which all but the queries is settled; kept where all rows may be results."""
        kept = self._kept.get((k, nprobe)) if selector is None else None
        if kept is None:
            effort = min(nprobe, self.nlist)
            kept = self._prepared(min(k, self.num_rows), effort, selector)
            if selector is None and len(self._kept) < MOST_KEPT:
                self._kept[k, nprobe] = kept
        return kept

    def _prepared(
        self, k: int, effort: int, selector: Any
    ) -> Callable[[Floats], tuple[Floats, Ids]]:
        if self._graph is not None:
            return self._graph.prepared(k, effort, selector)
        coarse, parameters = self.coarse, self._parameters(effort, selector)
        if coarse is None or not coarse.is_coded(effort):
            return FaissSearch(self._faiss, k, parameters)
        if self._is_fp16:
            return FaissSearch(self._through_codes, k, parameters)
        own = self._faiss  # and not the part: one that kept itself would outlive its last user
        return lambda queries_QD: _search_lists(
            own, queries_QD, k, *coarse.nearest(queries_QD, effort), parameters
        )

    @cached_property
    def _through_codes(self) -> Any:
        """The same lists behind `Coarse.coded`: one call, where to name the lists takes two."""
        assert self.coarse is not None, "who has no lists has no codes of them"
        own, codes = self._faiss, faiss.ScalarQuantizer.QT_fp16
        inner, residual, owned = faiss.METRIC_INNER_PRODUCT, False, False
        through = faiss.IndexIVFScalarQuantizer(
            self.coarse.coded, own.d, own.nlist, codes, inner, residual, owned
        )
        through.replace_invlists(own.invlists, owned)
        through.is_trained, through.ntotal = True, own.ntotal
        return through

    def _parameters(self, effort: int, selector: Any) -> Any:
        """FAISS's parameters. FAISS only reads them, so that threads may share them."""
        if not self._is_ivf:
            return selector and faiss.SearchParameters(sel=selector)
        made = self._visiting.get(effort) if selector is None else None
        if made is None:
            of_codes = None if self.coarse is None else self.coarse.parameters(effort)
            made = faiss.SearchParametersIVF(sel=selector, nprobe=effort, quantizer_params=of_codes)
            if selector is None:
                self._visiting[effort] = made
        return made

    def search_lists(
        self, queries_QD: Floats, k: int, lists_QP: Ids, parameters: Any
    ) -> tuple[Floats, Ids]:
        """As `search`, in the lists named for each query; a list of -1 is none.

        Args:
            queries_QD: unit vectors float32, C-contiguous.
            k: results a query.
            lists_QP: int64 numbers of lists, C-contiguous.
            parameters: FAISS's, with the selector of ids and as many lists as there are columns.
        """
        if self._of_residuals and self.coarse is not None:
            closeness_QP = self.coarse.closeness(queries_QD, lists_QP)
        else:  # FAISS does not look at it
            closeness_QP = np.zeros(lists_QP.shape, np.float32)
        return _search_lists(self._faiss, queries_QD, k, closeness_QP, lists_QP, parameters)

    def ids_by_list(self) -> Iterator[Ids]:
        """The ids in every inverted list."""
        lists = self._faiss.invlists
        for number in range(self.nlist):
            size = int(lists.list_size(number))
            yield faiss.rev_swig_ptr(lists.get_ids(number), size).copy() if size else NO_IDS

    @property
    def has_lists(self) -> bool:
        """Whether it is divided into several lists."""
        return self._is_ivf and self.nlist > 1

    def list_sizes(self) -> NDArray[np.int64]:
        """Rows in each inverted list, [nlist]; of one list where there are none."""
        if not self._is_ivf:
            return np.array([self.num_rows])
        lists = self._faiss.invlists
        return np.array([lists.list_size(number) for number in range(self.nlist)], np.int64)

    def lists_of(self, vectors_ND: Floats) -> Ids:
        """The list that each vector lies in or would lie in, int64 [N]."""
        if self.coarse is None:
            return np.zeros(len(vectors_ND), np.int64)
        return self.coarse.lists_of(np.ascontiguousarray(vectors_ND))

    def misfits(self, vectors_ND: Floats) -> list[Floats]:
        """Squared distances [N] of vectors to what stands for them, where that was trained.

        To the centroid of their list, if there are several, and to what short codes say.
        """
        found, coded_ND = [], vectors_ND
        if self.coarse is not None and self.has_lists:
            residuals_ND = vectors_ND - self.coarse.centroids()[self.lists_of(vectors_ND)]
            found.append((residuals_ND**2).sum(axis=1))
            coded_ND = residuals_ND if self._of_residuals else vectors_ND
        if self.lossy:
            codec = self._faiss.pq
            said_ND = codec.decode(codec.compute_codes(np.ascontiguousarray(coded_ND)))
            found.append(((coded_ND - said_ND) ** 2).sum(axis=1))
        return found

    def _num_stored(self) -> int:
        if not self._is_ivf:
            return int(self._faiss.id_map.size())
        lists = self._faiss.invlists
        return sum(int(lists.list_size(number)) for number in range(self.nlist))


def _search_lists(
    faiss_index: Any,
    queries_QD: Floats,
    k: int,
    closeness_QP: Floats,
    lists_QP: Ids,
    parameters: Any,
) -> tuple[Floats, Ids]:
    num_queries = len(queries_QD)
    scores = np.empty((num_queries, k), np.float32)
    ids = np.empty((num_queries, k), np.int64)
    # FAISS's wrapper for arrays takes nprobe from the shared index, and no parameters.
    arrays = (faiss.swig_ptr(a) for a in (lists_QP, closeness_QP, scores, ids))
    faiss_index.search_preassigned_c(
        num_queries, faiss.swig_ptr(queries_QD), k, *arrays, False, parameters
    )
    return scores, ids
