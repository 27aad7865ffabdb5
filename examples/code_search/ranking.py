"""Ranks and recall where each query has one answer: row i of one side has row i of the other."""

import torch
from scipy.sparse import csr_array
from torch import Tensor

ROWS = 1024  # at a time: the matrix of all similarities is never held


def ranks_by_words(queries: csr_array, references: csr_array) -> Tensor:
    """(N,): 1 + the number of other references whose product with query i is as high as i's own.

    What `pairops.retrieval.first_ranks` says of embeddings, of sparse rows; ties count against the
    query there too.
    """
    found: list[Tensor] = []
    others = references.T.tocsc()
    for begin in range(0, queries.shape[0], ROWS):
        block = torch.from_numpy((queries[begin : begin + ROWS] @ others).toarray())
        found.append((block >= block.diagonal(begin)[:, None]).sum(dim=1))
    return torch.cat(found)


def recall(ranks: Tensor, within: int) -> float:
    """Share of queries that have their answer among the first `within`."""
    return (ranks <= within).double().mean().item()
