"""Hashing: similarities of codes are to be those of what their rows are labelled with."""

from typing import Any

import torch
from torch import Tensor, relu
from typing_extensions import Unpack

from pairops.ops.pairs.similarity import apply_scale, at_least_float32, inverse_norm
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.arguments import Between, between
from pairops.ops.terms.checks import flag
from pairops.ops.terms.functions import Function
from pairops.ops.terms.tensor_checks import check_embeddings, check_finite, check_real, number
from pairops.ops.terms.term import ALL, NEG, POS, Term, total

from .objective.keywords import Labelled, Value
from .objective.objective import Objective, labelled, similar_only
from .objective.registration import loss

__all__ = ["hashing_loss"]


@loss()
def hashing_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,) or (N, C)
    *,
    scale: float | Tensor = 1.0,
    rectified: bool = True,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = mean_j ([s_ij]₊ − k cos(l_i, l_j))², over the references that i is compared with.

    The targets are cosines of label vectors: several labels as 0 and 1, say, or what a teacher says
    of a row. They get no gradient, and `ref_labels` (M, C) are alike. Labels (N,) stand for vectors
    with one 1: the target is k for a positive and 0 for a negative. A row's own pair, whose target
    it meets, is left out. A row of zeros among label vectors has the target 0. `distance` must be
    "cosine" or "dot".

    With label vectors no pair is listed: `Aux` counts every pair as a positive, and the engines
    "blockwise" and "dense" serve the loss.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the codes, before they are rounded to ±1.
        labels: (N,) integers; or (N, C) real numbers, a label vector l_i for each row.
        scale: a number or a 0-d tensor with gradient: k, the similarity of two rows with one label
            vector; of codes of D entries ±1, with distance="dot", it is D.
        rectified: False compares s_ij itself, not [s_ij]₊.

    Source:
        Xu et al., Deep Lifelong Cross-modal Hashing (DLCH), 2023, as in the authors' code. Its
        first training compares a batch with the latest codes of all rows, of either modality, as
        `ref_emb`. Its later steps compare it with codes of ±1: scale=D, rectified=False,
        distance="dot".

    Differs from:
        The authors' code knows no row's own pair, and counts it with the latest code of that row,
        as exclude_self=False does here. A label vector of zeros makes it NaN.
    """
    scale = number("scale", scale)
    flag("rectified", rectified)
    function = _rectified if rectified else _plain
    terms: tuple[Term, ...]
    if _are_vectors(labels, common):
        assert labels is not None
        objective, target = _of_vectors(x, labels, dict(common))
        terms = (total(ALL, target, scale, function=function),)
    else:
        objective = labelled(x, labels, common)
        terms = tuple([total(side, c, scale, function=function) for side, c in _OF_CLASSES])
    similar_only("hashing_loss", objective.pairs)
    sums = torch.stack(row_stats(objective.pairs, *terms)).sum(0)
    positives, negatives = objective.pairs.counts()
    return objective.value(sums / (positives + negatives).clamp(min=1))


def _are_vectors(labels: Tensor | None, common: Labelled) -> bool:
    related = common.get("width") is not None or common.get("positives") is not None
    return isinstance(labels, Tensor) and labels.ndim == 2 and not related


def _of_vectors(x: Tensor, labels: Tensor, given: dict[str, Any]) -> tuple[Objective, Between]:
    """Make the objective of rows with label vectors, all of one class, and the targets of pairs."""
    check_embeddings("x", x)
    if given.pop("ignore_index", None) not in (None, -100):
        raise ValueError("ignore_index is given with label vectors; it must be left out")
    mine = theirs = _unit_vectors("labels", labels, "x", x, None)
    ref_emb, ref_labels = given.get("ref_emb"), given.get("ref_labels")
    if ref_emb is not None and ref_labels is not None:
        check_embeddings("ref_emb", ref_emb, like=("x", x))
        theirs = _unit_vectors("ref_labels", ref_labels, "ref_emb", ref_emb, labels.shape[1])
        given["ref_labels"] = _one_class(ref_emb)
    objective = labelled(x, _one_class(x), {**given, "ignore_index": None})
    return objective, between(mine, theirs)


def _unit_vectors(
    name: str, values: Tensor, owner: str, x: Tensor, classes: int | None
) -> Tensor:  # (N, C)
    """Check label vectors of the rows of x, and divide them by their norms."""
    check_real(name, values)
    if values.ndim != 2 or len(values) != len(x) or values.shape[1] != (classes or values.shape[1]):
        wanted = f"({len(x)}, {classes or 'C'})"
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; it must be {wanted}, one row for each of "
            f"{owner}" + (" and one column for each of labels" if classes else "")
        )
    if not values.shape[1]:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; C must be at least 1")
    rows = values.detach().to(x.device, at_least_float32(x[:0]).dtype)
    check_finite(name, rows, None)
    return apply_scale(rows, inverse_norm(rows), rows.dtype)


def _one_class(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


def _rectified_value(s, target, scale):  # type: ignore[no-untyped-def]
    off = relu(s) - scale * target
    return off * off


def _rectified_slopes(s, target, scale):  # type: ignore[no-untyped-def]
    slope = 2.0 * (relu(s) - scale * target)
    return torch.where(s <= 0, 0.0, slope), -slope * scale, -slope * target


def _plain_value(s, target, scale):  # type: ignore[no-untyped-def]
    off = s - scale * target
    return off * off


def _plain_slopes(s, target, scale):  # type: ignore[no-untyped-def]
    slope = 2.0 * (s - scale * target)
    return slope, -slope * scale, -slope * target


# ([s]₊ − scale target)²
_rectified = Function(_rectified_value, _rectified_slopes, "rectified_off_target", finite=True)
# (s − scale target)²
_plain = Function(_plain_value, _plain_slopes, "off_target", finite=True)
# Of classes, the cosines of vectors with one 1.
_OF_CLASSES = (POS, 1.0), (NEG, 0.0)
