"""Uniformity: all embeddings push each other apart, until they are spread over the sphere."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.distances import Distance
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.tensor_checks import check_embeddings, number
from pairops.ops.terms.term import ALL, lse

from .objective.keywords import UnlabelledApart, Value
from .objective.objective import labelled
from .objective.registration import loss

__all__ = ["uniformity_loss"]


@loss()
def uniformity_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None = None,  # (N,)
    *,
    t: float | Tensor = 2.0,
    distance: Distance = "sqeuclidean",
    **common: Unpack[UnlabelledApart],
) -> Value:
    """ℓ_i = log mean_{j≠k} e^{−t d_jk}, over all pairs of the batch: one number for every anchor.

    The loss is log 1 = 0 if all embeddings coincide, and falls as they spread. Without a pair it is
    0. With similarities s, −d is s. Its rounding is that of log N, whatever its value. It is never
    above 0 for distances, so reduction="mean_nonzero" makes it 0.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, looked at for `ignore_index` alone. None: no row is left out.
        t: a number above 0 or a 0-d tensor with gradient, the sharpness.
        distance: as in `Pairs.of`.

    Source:
        Wang & Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, ICML 2020.
    """
    scale = number("t", t, positive=True)
    check_embeddings("x", x)
    if labels is None:
        labels = torch.zeros(x.shape[:1], dtype=torch.int64, device=x.device)
    objective = labelled(x, labels, common, distance=distance)
    pairs = objective.pairs
    (sums,) = row_stats(pairs, lse(ALL, scale, 0.0))
    # In the widest dtype, since log Σ and log of the number of pairs nearly cancel.
    log_sums = sums.to(widest_float(sums.device))
    highest = objective.highest(log_sums)
    highest = torch.where(highest == -torch.inf, 0, highest)
    count = torch.stack(pairs.counts()).sum().to(log_sums.dtype)
    power, count = objective.total(torch.stack([torch.exp(log_sums - highest).sum(), count]))
    some = count > 0
    log_mean = torch.log(torch.where(some, power / count, 1)) + torch.where(some, highest, 0)
    return objective.value(log_mean.to(sums.dtype).expand(len(sums)))
