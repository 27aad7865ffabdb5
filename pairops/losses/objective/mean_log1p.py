"""Losses that are sums of log(1 + exp R) over few statistics R, and their mean."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.row_stats.softplus_mean import softplus_mean, softplus_mean_serves

from .keywords import Value
from .objective import Objective


def reduce_log1p_exp(
    parts: Sequence[tuple[Tensor, float | Tensor]], objective: Objective, **seen: Any
) -> Value:
    """ℓ_i = Σ_k log(1 + exp R_k,i) / d_k, as `objective.value` makes of it.

    parts: each R_k (N,) and d_k.
    """
    if (
        softplus_mean_serves(objective.pairs, parts)
        and objective.reduction == "mean"
        and objective.weight is None
        and objective.group is None
    ):
        statistics = [statistic for statistic, _ in parts]
        divisors = [divisor for _, divisor in parts if not isinstance(divisor, Tensor)]
        mean = softplus_mean(objective.pairs, statistics, divisors)
        return objective.answer(mean, **seen)
    losses = None
    for statistic, divisor in parts:
        one = log1p_exp(statistic) / divisor
        losses = one if losses is None else losses + one
    assert losses is not None, "there is a statistic"
    return objective.value(losses, **seen)


def log1p_exp(statistic: Tensor) -> Tensor:
    """log(1 + exp R), the log of 1 + Σ exp of a log-sum-exp.

    Not `softplus`, which is linear above 20 and so 2e-9 off; and 0 with all its derivatives at
    −inf.
    """
    return -torch.nn.functional.logsigmoid(-statistic)
