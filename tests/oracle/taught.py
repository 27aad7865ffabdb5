"""Losses with a teacher: frozen embeddings of the same rows say how similar these are to be."""

import torch
from torch import Tensor

from oracle.rows import closeness

__all__ = ["cwcl_loss", "gram_matching_loss"]


def cwcl_loss(x, y, teacher, *, temperature=0.07, dtype=torch.float64, **pairing) -> Tensor:
    """CWCL (Srinivasa et al. 2023): -sum_j w_ij log softmax_j(t_ij / T) / sum_j w_ij one way, and
    -log softmax_i(t_ii / T) over the columns, T the temperature; w = (1 + cos of the teacher) / 2.
    """
    logits = closeness(x, y, dtype=dtype, **pairing) / temperature
    fixed = teacher.detach()
    w = (1 + closeness(fixed, fixed, dtype=dtype)) / 2
    w = w / w.sum(1, keepdim=True)
    return -(w * logits.log_softmax(1)).sum(1) - logits.log_softmax(0).diagonal()


def gram_matching_loss(
    x, teacher, *, ref_emb=None, ref_teacher=None, distance="cosine", normalize=None,
    dtype=torch.float64,
) -> Tensor:  # fmt: skip
    """U-REPA's manifold loss (2025): the mean over j of (t_ij - similarity of the teacher)^2."""
    y, v = (x, teacher) if ref_emb is None else (ref_emb, ref_teacher)
    t = closeness(x, y, distance, normalize, dtype)
    wanted = closeness(teacher.detach(), v.detach(), distance, normalize, dtype)
    return (t - wanted).square().sum(1) / max(len(y), 1)
