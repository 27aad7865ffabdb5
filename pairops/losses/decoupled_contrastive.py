"""Decoupled contrastive loss: the positive is not in the denominator."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.checks import flag
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, lse

from .info_nce import self_and_others
from .objective.keywords import Paired, Value
from .objective.objective import Objective, check_one_for_each, split
from .objective.registration import loss

__all__ = ["decoupled_contrastive_loss"]


@loss()
def decoupled_contrastive_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = 0.1,
    sigma: float | Tensor | None = None,
    detach_weights: bool = False,
    symmetric: bool = True,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log(Σ_{j≠i} e^{⟨x_i, x_j⟩/τ} + Σ_{j≠i} e^{⟨x_i, y_j⟩/τ}) − w_i ⟨x_i, y_i⟩/τ.

    The positive is not in the denominator. The loss is 0 for N = 1. `weight` is one factor per pair
    (i, i). With a distance d, ⟨·, ·⟩ is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings of one view.
        y: (N, D) of the dtype of x, the embeddings of the other view.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        sigma: a number above 0 or a 0-d tensor with gradient: σ in w_i = 2 − N e^{⟨x_i, y_i⟩/σ} /
            Σ_k e^{⟨x_k, y_k⟩/σ}. None: w_i = 1.
        detach_weights: True holds w_i constant, so that σ has no gradient either; False takes their
            gradient too.
        symmetric: True takes the mean of this loss and of the same with x and y exchanged.

    Source:
        Yeh et al., Decoupled Contrastive Learning, ECCV 2022. The weights w_i are those of a
        reimplementation, whose gradient passes through them.

    Differs from:
        DCLLoss and DCLWLoss of lightly add log Σ_{j≠i} e^{⟨x_i, x_j⟩/τ} and log Σ_{j≠i} e^{⟨x_i,
        y_j⟩/τ}, two logarithms in place of that of the sum, and hold the weights constant, as
        detach_weights=True does.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    spread = None if sigma is None else number("sigma", sigma, positive=True)
    flag("detach_weights", detach_weights)
    flag("symmetric", symmetric)
    check_one_for_each(x, y)
    asked, comparing = split(common, x)
    objective = Objective.of(Pairs.paired(x, y, **comparing), **asked)
    pairs = objective.pairs
    # snr divides by the variance of the anchor. In the other direction that is a row of y.
    directed = pairs.measure is not None and pairs.measure.directed
    at_once = (x, y) if symmetric and not directed else (x,)
    losses = _decoupled(objective, pairs, at_once, comparing, scale, spread, detach_weights)
    if symmetric and directed:
        turned = Pairs.paired(y, x, **comparing)
        losses = (
            losses + _decoupled(objective, turned, (y,), comparing, scale, spread, detach_weights)
        ) / 2
    return objective.value(losses)


def _decoupled(
    objective: Objective,
    pairs: Pairs,
    sets: tuple[Tensor, ...],
    comparing: Any,
    scale: float | Tensor,
    spread: float | Tensor | None,
    detach_weights: bool,
) -> Tensor:  # (N,)
    """Compute the loss of every pair (i, i), before weights.

    Args:
        objective: the objective of the call.
        pairs: x_i and y_i, by index.
        sets: the rows of `pairs`, and its columns too for the mean of both directions.
        comparing: keywords of `Pairs.of` that say how rows are compared.
        scale: 1/τ.
        spread: σ. None: w_i = 1.
        detach_weights: True holds w_i constant.
    """
    terms = self_and_others(scale)
    found = row_stats(pairs, *terms, cols=terms if len(sets) > 1 else ())
    if pairs.batch[0] < 2:
        return 0 * found[1]
    names = pairs.indices()
    ways = []
    for z, near, pos, cross in zip(sets, found[::3], found[1::3], found[2::3], strict=True):
        alone = Pairs.of(z, names, ignore_index=None, **comparing)
        (within,) = row_stats(alone, lse(NEG, scale, near))
        ways.append(log_add_exp(cross, within) - pos)
    losses = torch.stack(ways).mean(0)
    if spread is not None:
        s = found[1] / scale + found[0]
        shares = _shares(s / spread, objective)
        losses = losses - (1 - (shares.detach() if detach_weights else shares)) * s * scale
    return losses


def _shares(z: Tensor, objective: Objective) -> Tensor:
    """Compute N times the softmax of z (N,) over the batch of all ranks."""
    if objective.group is None:
        return len(z) * torch.softmax(z, 0)
    power = torch.exp(z - objective.highest(z))
    return power * (objective.pairs.batch[0] / objective.total(power.sum()))
