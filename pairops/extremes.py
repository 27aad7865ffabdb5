"""The gradient of a lowest or highest: it goes to one pair per owner, at O(N·D) and no sweep."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .pairs import Pairs
from .terms import Partner, Term


def weigh_extreme(
    pairs: Pairs, term: Term, axis: int, argument: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients by the scaled rows of x and of y, and by the term's tensor arguments.

    axis: 0 if the owners are the rows, 1 if they are the columns.  argument: (owners,) the partner
    that attained the extreme, or −1.  Differentiable: plain torch throughout.
    """
    scaled = [
        _scaled(z, scale, pairs.dtype)
        for z, scale in ((pairs.x, pairs.scale_x), (pairs.other, pairs.scale_y))
    ]
    owners, partners = scaled[axis], scaled[1 - axis]
    found = argument >= 0
    at = argument.clamp(min=0)
    if partners.shape[0] == 0:  # nothing to index; every argument is −1
        return (
            torch.zeros_like(scaled[0]),
            torch.zeros_like(scaled[1]),
            [torch.zeros_like(v) for v in term.vectors()],
        )
    # An absent owner may hold a NaN, and 0·NaN would carry it on: select before multiplying.
    owner = torch.where(found.unsqueeze(1), owners, 0)
    partner = torch.where(found.unsqueeze(1), partners.index_select(0, at), 0)
    s = (owner * partner).sum(1)
    args: list[Any] = [
        a.values.index_select(0, at) if isinstance(a, Partner) else a for a in term.args
    ]
    slopes: Sequence[Any] = term.function.slopes(s, *args)  # type: ignore[misc]
    cotangent = torch.where(found, cotangent, 0)
    weight = (cotangent * slopes[0]).unsqueeze(1)

    to_owner = weight * partner
    to_partner = _add_rows(partners, at, weight * owner)
    vectors = []
    for k, a in enumerate(term.args):
        if isinstance(a, Partner):
            vectors.append(_add_rows(a.values, at, cotangent * slopes[1 + k]))
        elif isinstance(a, Tensor):
            vectors.append(cotangent * slopes[1 + k])
    return (to_owner, to_partner, vectors) if axis == 0 else (to_partner, to_owner, vectors)


def _scaled(z: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    wide = z.to(dtype)
    return wide if scale is None else wide * scale.unsqueeze(1)


def _add_rows(like: Tensor, at: Tensor, rows: Tensor) -> Tensor:
    """Rows summed by destination, in an order that does not change from run to run.

    index_add is deterministic on the CPU and atomic on CUDA; accumulating index_put is the reverse.
    """
    zeros = torch.zeros_like(like)
    if like.device.type == "cpu":
        return zeros.index_add(0, at, rows)
    return zeros.index_put((at,), rows, accumulate=True)
