"""The losses over two sets: row i of y belongs to row i of x."""

import torch
from torch import Tensor

from .rows import closeness, softplus


def info_nce_loss(x, y, *, temperature=0.07, symmetric=True, **pairing) -> Tensor:
    """InfoNCE (van den Oord et al. 2018), both ways as in CLIP: half the cross entropies of row i
    and of column i, target i; or that of the row.

    The rows of y beyond those of x are negatives of every row.
    """
    logits = closeness(x, y, **pairing) / temperature  # (N, M)
    matched = logits.diagonal()
    rows = logits.logsumexp(1) - matched
    columns = logits[:, : len(x)].logsumexp(0) - matched
    return rows / 2 + columns / 2 if symmetric else rows


def siglip_loss(x, y, *, scale, bias, **pairing) -> Tensor:
    """SigLIP (Zhai 2023): sum_j log(1 + e^{-z_ij (scale s_ij + bias)}), z_ii = 1, else -1."""
    logits = scale * closeness(x, y, **pairing) + bias  # (N, N)
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return softplus(-z * logits).sum(1)
