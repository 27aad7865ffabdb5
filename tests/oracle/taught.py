"""Losses with a teacher: frozen embeddings of the same rows say how similar these are to be."""

import torch
from torch import Tensor

from oracle.rows import closeness

__all__ = ["cwcl_loss", "distillation_loss", "gram_matching_loss"]


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


def distillation_loss(
    x, y, teacher_x, teacher_y, *, temperature=0.07, teacher_temperature=0.07, divergence="kl",
    dtype=torch.float64, **pairing,
) -> Tensor:  # fmt: skip
    """KL(p || q) of each row, q = softmax(t / T) and p = softmax(cos of the teacher / T'), where
    Jeffreys is its mean with KL(q || p) (UniME-V2, 2025)."""
    q = (closeness(x, y, dtype=dtype, **pairing) / temperature).log_softmax(1)
    wanted = closeness(teacher_x.detach(), teacher_y.detach(), dtype=dtype)
    p = (wanted / teacher_temperature).log_softmax(1)
    one = (p.exp() * (p - q)).sum(1)
    return one if divergence == "kl" else one / 2 + (q.exp() * (q - p)).sum(1) / 2
