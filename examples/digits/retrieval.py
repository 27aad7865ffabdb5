"""MAP@R and Recall@1 by cosine: how well an embedding retrieves its own class."""

import torch
from torch.nn.functional import normalize


def ranked_matches(embedding: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N, D), (N,) -> (N, N-1) bool: is the k-th nearest other row of the query's class?

    Evaluation sets are small, so the whole similarity matrix is held here.
    """
    unit = normalize(embedding.detach().double(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
    return labels[order] == labels[:, None]


def map_at_r(embedding: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean average precision at R (Musgrave et al., "A Metric Learning Reality Check", 2020).

        MAP@R = mean over queries q of (1 / R_q) * sum_{k=1..R_q} match_q(k) * precision_q(k)

    R_q is the number of other rows of q's class, match_q(k) is 1 if q's k-th nearest row is one of
    them, and precision_q(k) is the share of them among the k nearest. A query that is alone in its
    class asks for nothing and is left out; without any query the measure is NaN.
    """
    match = ranked_matches(embedding, labels)
    relevant = match.sum(dim=1, keepdim=True)
    rank = torch.arange(1, match.shape[1] + 1, dtype=torch.float64, device=match.device)
    precision = match.cumsum(dim=1) / rank
    hits = (match & (rank <= relevant)) * precision
    asked = relevant[:, 0] > 0
    return (hits.sum(dim=1) / relevant[:, 0])[asked].mean().item()


def recall_at_1(embedding: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of queries whose nearest other row is of their class; lone queries are left out.

    Recall@1 = mean over queries q of match_q(1)
    """
    match = ranked_matches(embedding, labels)
    return match[match.any(dim=1), 0].double().mean().item()
