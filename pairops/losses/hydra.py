"""Gated pairs (SimLAP): an anchor's gate says in which features two classes are compared."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.checks import compares_units, ignored_label, is_number
from pairops.ops.pairs.distances import Distance
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache
from pairops.ops.pairs.similarity import apply_scale, at_least_float32, inverse_norm
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.arguments import Given, between, partner
from pairops.ops.terms.functions import Function, softplus_from
from pairops.ops.terms.tensor_checks import check_embeddings, number, whole_numbers
from pairops.ops.terms.term import NEG, POS, Earlier, highest, lowest, lse, total

from .objective.keywords import ClassesApart, Value
from .objective.objective import Aux, check_one_for_each, labelled, no_similarity
from .objective.registration import loss

__all__ = ["hydra_loss"]


@loss()
def hydra_loss(
    x: Tensor,  # (N, D)
    gate: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    partner_labels: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.1,
    distance: Distance = "cosine",
    **common: Unpack[ClassesApart],
) -> Value:
    """ℓ_i = 1/|P_i| Σ_p log(1 + Σ_n e^{(s_in − s_ip)/τ}), s_ij = cos(g_i ⊙ x_i, g_i ⊙ x_j).

    The positives of anchor i are the references of its partner class, `partner_labels`_i, and its
    negatives those neither of this class nor of its own. Further references of its own class do
    not count, unless both classes are one. An anchor with `ignore_index` as either class is left
    out, and one without positives or negatives contributes 0. The gate gets a gradient.
    `reduction="mean_pairs"` averages over all positive pairs.

    Two products make s_ij, ⟨g_i² ⊙ x_i, x_j⟩ / (‖g_i ⊙ x_i‖ ⟨g_i², x_j²⟩^½), so no pair has gated
    features of its own. The engines "blockwise" and "dense" serve the second one.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        gate: (N, D) of the dtype of x: g_i, made of both classes of anchor i.
        labels: (N,) integers, not uint64: the class of each row.
        partner_labels: (N,) integers, not uint64: the partner class of each anchor.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        distance: "cosine"; or "dot", and s_ij is ⟨g_i ⊙ x_i, g_i ⊙ x_j⟩.

    Source:
        Wu et al., Rethinking Positive Pairs in Contrastive Learning (SimLAP, Hydra), 2024. The
        authors' code is reduction="mean_pairs" and exclude_self=False, with a cross entropy of a
        linear probe beside it.

    Differs from:
        The authors' code subtracts a row's mean before the exponential, not its maximum; holds N·N
        gated rows; and looks at the labels of one GPU alone.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    given: dict[str, Any] = dict(common)
    unit = compares_units(distance, given.pop("normalize", None))
    if distance not in ("cosine", "dot"):
        raise no_similarity("hydra_loss", distance)
    check_one_for_each(x, gate, "gate")
    labels = _classes("labels", labels, "x", x)
    partners = _classes("partner_labels", partner_labels, "x", x)
    _set_references(given, x, labels)
    ignored = ignored_label(given.get("ignore_index", -100))
    if ignored is not None:
        partners = torch.where(is_number(labels, ignored), labels, partners)
    objective = labelled(x, partners, given, averages_pairs=True, distance="dot")
    objective.warn_without_positives()
    pairs, product = _gated(objective.pairs, gate, unit)
    classes = _numbered(pairs, labels, given["ref_labels"])
    near = highest(POS, product, function=_cosine, grad=False)
    log_sum = lse(NEG, product, *classes, scale, near, function=_of_neither)
    penalties = total(POS, product, -scale, near, Earlier(log_sum, grad=True), function=_penalty)
    sums = row_stats(pairs, near, log_sum, penalties)[2]
    positives = pairs.positives()
    reduced = replace(objective, return_aux=False)
    if objective.averages_pairs:
        value = reduced.mean_pairs((sums, positives))
    else:
        value = reduced.value(sums / positives.clamp(min=1))
    if not objective.return_aux:
        return value
    with torch.no_grad():
        far, nearest, negatives, log_sums = row_stats(
            pairs,
            lowest(POS, product, function=_cosine, grad=False),
            highest(NEG, product, *classes, 1.0, 0.0, function=_of_neither, grad=False),
            total(NEG, *classes, function=_differ),
            lse(NEG, product, *classes, scale, 0.0, function=_of_neither),
        )
    seen = {"negative": log_sums}
    return value, Aux(positives, negatives.long(), far, nearest, log_sum_exps=seen)


def _classes(name: str, values: Tensor, owner: str, x: Tensor) -> Tensor:
    """Return classes as int64 on the device of x; of uint64 the bits could be those of another."""
    found = whole_numbers(name, values, owner, x)
    if values.dtype == torch.uint64:
        raise TypeError(f"{name} is torch.uint64; it must fit int64: write {name}.long()")
    return found


def _set_references(given: dict[str, Any], x: Tensor, labels: Tensor) -> None:
    """Let x be its own other set, where there is none: partner classes are of its rows alone."""
    other, theirs = given.get("ref_emb"), given.get("ref_labels")
    if other is not None:
        check_embeddings("ref_emb", other, like=("x", x))
        if theirs is not None:
            given["ref_labels"] = _classes("ref_labels", theirs, "ref_emb", other)
        return
    for name in ("ref_labels", "ids", "ref_ids"):
        if given.get(name) is not None:
            raise ValueError(f"{name} is given without ref_emb; it must come with one")
    given |= {"ref_emb": x, "ref_labels": labels}


def _gated(pairs: Pairs, gate: Tensor, unit: bool) -> tuple[Pairs, Given]:
    """Return pairs whose products are ⟨g_i ⊙ x_i, g_i ⊙ y_j⟩, over ‖g_i ⊙ x_i‖ for unit vectors,
    and what gives ‖g_i ⊙ y_j‖²."""
    x, gate = at_least_float32(pairs.x), at_least_float32(gate)
    # One copy of one set: of 16 bits the gradients of two would be rounded before they are added.
    y = x if pairs.other is pairs.x else at_least_float32(pairs.other)
    if not pairs.complete:  # an ignored row may hold anything, and 0·NaN is NaN
        valid_x, valid_y = (
            z.unsqueeze(1) for z in (pairs.relation.valid_x, pairs.relation.valid_y)
        )
        x, gate, y = (
            torch.where(valid, z, 0) for valid, z in ((valid_x, x), (valid_x, gate), (valid_y, y))
        )
    gated = gate * x
    norms = inverse_norm(gated) if unit else None
    of_anchors = apply_scale(gate * gated, norms, gated.dtype)
    found = replace(pairs, x=of_anchors, y=y, cache=Cache(positives=pairs.cache.positives))
    return found, between(gate * gate, y * y) if unit else 1.0


def _numbered(pairs: Pairs, labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Given]:
    """Number the classes of references, so that floating-point numbers tell them apart.

    Return (N,) the number of each anchor's own class, −1 for one that no reference has, and (M,)
    that of each reference.
    """
    every = torch.sort(pairs.of_all(1, ref_labels)).values
    ends = torch.cat([every, every[:1]])
    numbers = torch.cat([every.new_zeros(1), (ends[1:] != ends[:-1]).cumsum(0)])

    def of(classes: Tensor) -> Tensor:
        place = torch.searchsorted(every, classes)
        known = torch.searchsorted(every, classes, right=True) > place
        return torch.where(known, numbers[place], -1).to(pairs.dtype)

    return of(labels), partner(of(ref_labels))


def _inverse(s: Any, square: Any) -> Any:
    """1/√square, 0 for a gated row that counts as 0; NaN for NaN"""
    square = square + 0.0 * s
    vanishes = square < 1e-24
    return torch.where(vanishes, 0.0, 1 / torch.sqrt(torch.where(vanishes, 1.0, square)))


def _cosine_value(s, square):  # type: ignore[no-untyped-def]
    return s * _inverse(s, square)


def _cosine_slopes(s: Any, square: Any) -> tuple[Any, Any]:
    inverse = _inverse(s, square)
    return inverse, -0.5 * (s * inverse) * (inverse * inverse)


def _of_neither_value(s, square, mine, theirs, scale, base):  # type: ignore[no-untyped-def]
    z = scale * (s * _inverse(s, square) - base)
    return torch.where(mine == theirs, -torch.inf, z)


def _of_neither_slopes(s, square, mine, theirs, scale, base):  # type: ignore[no-untyped-def]
    by_s, by_square = _cosine_slopes(s, square)
    cosine = s * by_s
    slopes = scale * by_s, scale * by_square, cosine - base, 0.0 * s - scale
    by_s, by_square, by_scale, by_base = (torch.where(mine == theirs, 0.0, z) for z in slopes)
    return by_s, by_square, 0.0, 0.0, by_scale, by_base


def _penalty_value(s, square, scale, base, bias):  # type: ignore[no-untyped-def]
    return softplus_from.value(s * _inverse(s, square), scale, base, bias)


def _penalty_slopes(s, square, scale, base, bias):  # type: ignore[no-untyped-def]
    by_s, by_square = _cosine_slopes(s, square)
    by_cosine, *others = softplus_from.slopes(s * by_s, scale, base, bias)  # type: ignore[misc]
    return by_cosine * by_s, by_cosine * by_square, *others


def _differ_value(s, mine, theirs):  # type: ignore[no-untyped-def]
    return torch.where(mine == theirs, 0.0, 1.0) + 0.0 * s


def _differ_slopes(s, mine, theirs):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return 0.0, 0.0, 0.0


# s / √square: the cosine, where s has the anchor's norm in it
_cosine = Function(_cosine_value, _cosine_slopes, "gated_cosine", finite=True)
# scale (s / √square − base), −inf for a reference of the anchor's own class
_of_neither = Function(_of_neither_value, _of_neither_slopes, "gated_cosine_of_neither")
# log(1 + exp(scale (s / √square − base) + bias))
_penalty = Function(_penalty_value, _penalty_slopes, "gated_penalty", finite=True)
# 1, but 0 for a reference of the anchor's own class
_differ = Function(_differ_value, _differ_slopes, "of_another_class", finite=True)
