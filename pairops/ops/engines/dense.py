"""The dense engine, the reference: the whole matrix, differentiated by autograd alone.

It shares the vocabulary with the other engines but none of their tricks, and it never calls a
function's slopes, unless the function declares that its slope is not the derivative.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.indexing import inverse_permutation
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale, inverse_norm, product, shrinking
from pairops.ops.terms.arguments import Argument, Between, Partner, Table
from pairops.ops.terms.term import ALL, POS, Term

from .protocol import Backward

NAME = "dense"
TAKES_EARLIER = "nowhere"
TAKES_DISTANCES = False
TAKES_LISTS = True
DEVICE: str | None = None
backward: Backward | None = None


def missing() -> str | None:
    return None


def declines(*_call: object) -> str | None:
    return None


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return an empty shape: there are no tiles."""
    x = _comparable(pairs.x, pairs.relation.valid_x, pairs)
    y = x if pairs.y is None else _comparable(pairs.y, pairs.relation.valid_y, pairs)
    s = product(x, y)
    positive, present = _masks(pairs)
    valid = pairs.relation.valid_x, pairs.relation.valid_y
    found = [_statistic(s, positive, present, term, valid) for term in rows]
    found += [_statistic(s.T, positive.T, present.T, term, valid[::-1]) for term in cols]
    arguments = [argument for _, argument in found if argument is not None]
    tile_masks = pairs.x.new_empty(tile_masks_shape(), dtype=torch.uint8)
    return [statistic for statistic, _ in found], arguments, tile_masks


def tile_masks_shape(*_call: object) -> tuple[int, ...]:
    return (0,)


def _comparable(x: Tensor, keep: Tensor, pairs: Pairs) -> Tensor:
    """Return rows whose dot products are the similarities; 0 for an ignored row."""
    rows = torch.where(keep[:, None], x, 0)
    if pairs.scales.x is None:
        rows = rows.to(pairs.dtype)
        return rows * (1 + 0 * rows)  # so that a NaN or Inf also shows in its own gradient
    rows = rows.to(widest_float(x.device))  # the two ways to its gradient nearly cancel
    rows = rows * shrinking(rows).unsqueeze(1)  # a unit row is the same, however long it was
    return apply_scale(rows, inverse_norm(rows), pairs.dtype)


def _masks(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return (N, M) bool: whether j is a positive of i, and whether (i, j) is a pair at all."""
    relation = pairs.relation
    row, position = (
        inverse_permutation(relation.permutation_x),
        inverse_permutation(relation.permutation_y),
    )
    present = position != relation.self_index[row][:, None]
    valid = relation.valid_x[:, None] & relation.valid_y
    return relation.positive(row, position), present & valid


def _statistic(
    s: Tensor, positive: Tensor, present: Tensor, term: Term, valid: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the statistic (N,) of s (N, M), and who attained an extreme.

    A column term gets everything transposed. valid: owners and partners that are not ignored.
    """
    if not term.grad:
        s = s.detach()
    selected = (
        present if term.side == ALL else present & (positive if term.side == POS else ~positive)
    )
    if term.above is not None:
        selected = selected & ~(s <= term.above[:, None])
    if term.below is not None:
        selected = selected & ~(s >= term.below[:, None])
    # Select inputs as well as results: a dropped pair's slope may be infinite, as its owner's
    # argument may be, and 0·inf is NaN. `where` cuts its gradient off, of any order.
    s = torch.where(selected, s, 0)
    args = [_where_selected(selected, _spread(argument, valid)) for argument in term.args]
    if term.function.is_derivative:
        f = term.value(s, *args)
    else:
        f = term.value(s.detach(), *args) + (s - s.detach()) * term.slopes(s, *args)[0]
    neutral = term.monoid.neutral
    f = torch.where(selected, f, neutral)
    if term.statistic == "sum":
        return f.sum(1), None
    if s.shape[1] == 0:
        nobody = torch.full_like(f[:, :0].sum(1), -1, dtype=torch.int64)
        return f.sum(1) + neutral, nobody if term.keeps_argument else None
    if term.statistic == "lse":
        # torch's second derivative of a log-sum-exp over −inf alone is NaN.
        empty = ~(selected & (f != -torch.inf)).any(1)
        f = torch.where(empty[:, None], 0, f)
        return torch.where(empty, neutral, torch.logsumexp(f, 1)), None
    extreme = (f.amin if term.statistic == "lowest" else f.amax)(1, keepdim=True)
    first = (selected & ((f == extreme) | f.isnan())).byte().argmax(1, keepdim=True)
    extreme = f.gather(1, first).squeeze(1)
    if not term.keeps_argument:
        return extreme, None
    # A function of a distance has the window in it, and gives the neutral value outside.
    somebody = selected.any(1) & (extreme != neutral)
    return extreme, torch.where(somebody, first.squeeze(1), -1)


def _where_selected(selected: Tensor, argument: Any) -> Any:
    """Return the argument of each pair; 1 for a dropped one, since functions may divide by it."""
    return torch.where(selected, argument, 1) if isinstance(argument, Tensor) else argument


def _spread(argument: Argument, valid: tuple[Tensor, Tensor]) -> Any:
    if isinstance(argument, Partner):
        return argument.values[None, :]
    if isinstance(argument, Between):
        # An ignored row may hold anything, and 0·NaN would be its share of a gradient.
        rows = [
            torch.where(keep[:, None], z, 0)
            for keep, z in zip(valid, (argument.owners, argument.partners), strict=True)
        ]
        return product(*rows)
    if isinstance(argument, Table):
        return argument.values[argument.owners][:, argument.partners]
    return argument[:, None] if isinstance(argument, Tensor) else argument
