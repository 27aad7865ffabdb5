"""TAL and SMS: two sets aligned through several positives per row, or by graded relevance."""

import torch
from torch import Tensor, relu
from typing_extensions import Unpack

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import at_least_float32
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.accumulators import finite
from pairops.ops.terms.arguments import Given, Table
from pairops.ops.terms.functions import Function, attended
from pairops.ops.terms.tensor_checks import (
    FLOATS,
    check_classes,
    check_finite,
    check_integers,
    check_one_each,
    check_real,
    number,
    readable,
)
from pairops.ops.terms.term import NEG, POS, lse, total

from .objective.keywords import LabelledAlone, Paired, Value
from .objective.objective import Objective, check_one_for_each, paired, split
from .objective.registration import loss

__all__ = ["sms_loss", "tal_loss"]


@loss()
def tal_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.015,
    margin: float | Tensor = 0.1,
    **common: Unpack[LabelledAlone],
) -> Value:
    """ℓ_i = [m − Σ_p α_ip s_ip + τ log Σ_n e^{s_in/τ}]₊, plus the same of y_i among the x.

    α_ip = e^{s_ip/τ} / Σ_q e^{s_iq/τ} over the positives is held constant: y_j is a positive of x_i
    if their labels are equal, y_i among them. A direction without negatives is worth 0. With a
    distance d, s is −d. `weight` is, for example, 1 for a pair believed to be clean, else 0.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (N, D) of the dtype of x. y_i belongs to x_i.
        labels: (N,) integers, the labels of x_i and of y_i.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        margin: a number or a 0-d tensor with gradient: m.

    Source:
        Qin et al., Noisy-Correspondence Learning for Text-to-Image Person Re-identification (RDE),
        CVPR 2024.

    Differs from:
        The authors' code adds up the batch, as reduction="sum" does. Its gradient is NaN for a row
        without negatives.
    """
    temperature = number("temperature", temperature, positive=True)
    margin, scale = number("margin", margin), 1 / temperature
    check_one_for_each(x, y)
    asked, pairing = split(common, x)
    pairs = Pairs.of(x, labels, ref_emb=y, ref_labels=labels, exclude_self=False, **pairing)
    objective, pairs = Objective.of(pairs, **asked), pairs.widened()
    near = lse(POS, scale, 0.0)
    # The sum is of differences from τ log Σ_p. The mean lies near it, so rounding errors are small.
    terms = near, lse(NEG, scale, 0.0), total(POS, scale, near, function=attended)
    found = row_stats(pairs, *terms, cols=terms)
    pos, neg, _ = found[:3]
    losses = []
    for pull, push, mean in (found[:3], found[3:]):
        none = (pull == -torch.inf) | (push == -torch.inf)
        z = margin - mean + temperature * (finite(push) - finite(pull).detach())
        losses.append(relu(torch.where(none, -torch.inf, z)))
    return objective.value(losses[0] + losses[1], positive=pos, negative=neg)


@loss("relevance")
def sms_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    relevance: Tensor | None = None,  # (A, B)
    x_classes: Tensor | None = None,  # (N,)
    y_classes: Tensor | None = None,  # (N,)
    own: Tensor | None = None,  # (N,)
    gamma: float | Tensor = 0.6,
    tau: float | Tensor = 0.1,
    tolerance: float | Tensor = 1.1 / 240,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = 1/(2(N − 1)) Σ_{j≠i} [φ(R_ij, s_ii − s_ij) + φ(R'_ij, s_ii − s_ji)].

    With z = γR − Δ, φ(R, Δ) is [z]₊ where R > e, [|z| − τ]₊ where |R| < e, and [−z]₊ elsewhere. The
    margin by which the own pair is to be nearer than another depends on how much more relevant it
    is: R_ij = c_ii − c_ij and R'_ij = c_ii − c_ji, where c_ij = C[a_i, b_j]. Without a table other
    pairs are not relevant, and R_ij = R'_ij = c_ii, which is `own`. With a distance d, s is −d.
    `weight` is one factor per pair (i, i).

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (N, D) of the dtype of x. y_i belongs to x_i.
        relevance: (A, B) floating point, from 0 to 1, without gradient: C. None: no pair but the
            own one is relevant.
        x_classes: (N,) integers, not uint64: a, the row of C for each x_i; needed with `relevance`.
        y_classes: (N,) integers, not uint64: b, the column of C for each y_i; needed with
            `relevance`.
        own: (N,) floating point, from 0 to 1, without gradient: how relevant y_i is to x_i, where
            there is no table. None: 1.
        gamma: a number or a 0-d tensor with gradient: γ.
        tau: a number or a 0-d tensor with gradient: τ.
        tolerance: a number or a 0-d tensor: e.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be. A table that
            holds a NaN is an error where it can be read without waiting.

    Source:
        Wang et al., symmetric multi-similarity of EVA02-AT, 2025, as in the authors' SMS-Loss,
        where a table is stored in steps of 1/240, and `own` comes with each pair. The loss has no
        log-sum-exp, its name notwithstanding.
    """
    gamma, tau = number("gamma", gamma), number("tau", tau)
    tolerance = number("tolerance", tolerance)
    check_one_for_each(x, y)
    others: list[Given] = [0.0, 0.0]
    self_relevance: float | Tensor = 1.0
    if relevance is not None:
        if own is not None:
            raise ValueError("own is given with relevance, which has it; it must be None")
        values, a, b = _looked_up(relevance, x_classes, y_classes, x)
        others, self_relevance = [Table(values, a, b), Table(values.T, b, a)], values[a, b]
    else:
        for name, classes in (("x_classes", x_classes), ("y_classes", y_classes)):
            if classes is not None:
                raise ValueError(f"{name} is given without relevance; it must come with a table")
        if own is not None:
            self_relevance = _checked_relevance(own, x)
    objective = paired(x, y, common)
    pairs = objective.pairs
    (self_score,) = row_stats(pairs, total(POS, 1.0, 0.0))
    rows, cols = (
        total(NEG, self_score, self_relevance, other, gamma, tau, tolerance, function=_graded)
        for other in others
    )
    sums = row_stats(pairs, rows, cols=[cols])
    n, _ = pairs.batch
    return objective.value((sums[0] + sums[1]) / max(2 * (n - 1), 1))


def _graded_value(s, self_score, self_relevance, of_other, gamma, tau, tolerance):  # type: ignore[no-untyped-def]
    more = self_relevance - of_other + 0.0 * s
    z = gamma * more - (self_score - s)
    equal = relu(torch.abs(z) - tau)
    either = torch.where(more > tolerance, relu(z), relu(-z))
    return torch.where(torch.abs(more) < tolerance, equal, either)


def _graded_slopes(s, self_score, self_relevance, of_other, gamma, tau, tolerance):  # type: ignore[no-untyped-def]
    more = self_relevance - of_other + 0.0 * s
    z = gamma * more - (self_score - s)
    bad = 0.0 * z  # a NaN must not look like a slope of 0
    outside = (torch.abs(z) > tau) + bad
    by_z = torch.where(more > tolerance, (z > 0) + bad, -((z < 0) + bad))
    equal = torch.abs(more) < tolerance
    by_z = torch.where(equal, torch.sign(z) * outside, by_z)
    by_tau = torch.where(equal, -outside, bad)
    return by_z, -by_z, gamma * by_z, -gamma * by_z, more * by_z, by_tau, bad


_graded = Function(_graded_value, _graded_slopes, "graded", finite=True)


def _checked_relevance(own: Tensor, x: Tensor) -> Tensor:
    """Check the relevance of each pair (i, i); give it the dtype of statistics."""
    check_real("own", own)
    if own.dtype not in FLOATS:
        raise TypeError(f"own is {own.dtype}; it must be floating-point, from 0 to 1")
    check_one_each("own", own, "x", x)
    check_finite("own", own, None)
    return own.detach().to(x.device, at_least_float32(x[:0]).dtype)


def _looked_up(
    relevance: Tensor,
    x_classes: Tensor | None,
    y_classes: Tensor | None,
    x: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the table and the classes of both sets; give the table the dtype of statistics."""
    n = len(x)
    check_real("relevance", relevance)
    if relevance.dim() != 2:
        raise ValueError(f"relevance is {tuple(relevance.shape)}; it must be a tensor (A, B)")
    if relevance.dtype not in FLOATS:
        raise TypeError(f"relevance is {relevance.dtype}; it must be floating-point, from 0 to 1")
    if readable(relevance) and bool(relevance.isnan().any()):
        raise ValueError("relevance holds a NaN; every entry must be a number")
    found = []
    for axis, (name, classes) in enumerate((("x_classes", x_classes), ("y_classes", y_classes))):
        if classes is None:
            raise TypeError(f"{name} is None; with relevance it must be an integer tensor ({n},)")
        check_integers(name, classes, f"({n},)")
        if classes.dtype == torch.uint64:  # labels may be hashes, but rows of a table are counted
            raise TypeError(f"{name} is torch.uint64; it must fit int64: write {name}.long()")
        if classes.shape != (n,):
            raise ValueError(f"{name} has shape {tuple(classes.shape)}; it must be ({n},)")
        indices = classes.long()  # torch has neither min nor max of unsigned integers
        check_classes(name, indices, relevance.shape[axis], "relevance has on that side")
        found.append(indices.to(x.device))
    values = relevance.detach().to(x.device, at_least_float32(x[:0]).dtype)
    return values, found[0], found[1]
