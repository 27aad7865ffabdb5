"""Uniformity and alignment: all rows spread over the sphere, and what belongs together meets."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.distances import Distance
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.tensor_checks import check_embeddings, number
from pairops.ops.terms.term import ALL, POS, lse, total

from .objective.keywords import PairedApart, UnlabelledApart, Value
from .objective.objective import check_one_for_each, labelled, paired
from .objective.registration import loss

__all__ = ["alignment_loss", "uniformity_loss"]


@loss()
def alignment_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    alpha: float | Tensor = 2.0,
    distance: Distance = "l2",
    **common: Unpack[PairedApart],
) -> Value:
    """ℓ_i = d_ii^α, the distance of x_i and y_i to a power: both views of a thing are to coincide.

    It compares no row with another's, and takes time and memory O(N·D). `weight` is one factor per
    pair (i, i). Where y_i is x_i within rounding, the loss is 0 and has no gradient, though for
    α < 1 it is infinite near by, and for α = 1 of length 1.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings of one view.
        y: (N, D) of the dtype of x, the embeddings of the other view.
        alpha: a number above 0 or a 0-d tensor with gradient: α.
        distance: "l2", "sqeuclidean" or "snr", as in `Pairs.of`.

    Source:
        Wang & Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, ICML 2020.

    Differs from:
        The authors' code takes embeddings that are unit vectors already; `normalize` is True here.
        Its gradient is NaN where two rows coincide and α < 1.
    """
    power = number("alpha", alpha, positive=True)
    check_one_for_each(x, y)
    objective = paired(x, y, {"distance": distance, **common})
    pairs = objective.pairs
    if pairs.measure is None:
        raise ValueError(
            f"distance is {distance!r}; alignment_loss compares distances, so it must be 'l2', "
            "'sqeuclidean' or 'snr'"
        )
    (closeness,) = row_stats(pairs, total(POS, 1.0, 0.0))
    coincide = closeness == 0
    apart = torch.where(coincide, 1, -closeness)
    return objective.value(torch.where(coincide, 0, apart**power))


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
