"""The weight that a loss gives to every pair, for those who want to see it: a block at a time.

General pair weighting says that a pair-based loss is this weight, w_ij = ∂L/∂s_ij. Training never
holds them; here the statistics that a loss took are watched, and of a block the same shares and
slopes are written out that `backward` would have multiplied with the embeddings.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pairops.ops.distributed.allocation import refusing
from pairops.ops.engines import ENGINES
from pairops.ops.pairs.indexing import inverse_permutation
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.picked import copied
from pairops.ops.pairs.similarity import apply_scale, no_autocast, product
from pairops.ops.row_stats import levels, picked_rows
from pairops.ops.row_stats.levels import Levels
from pairops.ops.row_stats.op import RecordedCall, watched
from pairops.ops.terms.arguments import Between, Partner, Table
from pairops.ops.terms.checks import function
from pairops.ops.terms.tensor_checks import check_embeddings, check_integers
from pairops.ops.terms.term import ALL, POS, Term, Wanted


@refusing
def pair_weights(
    loss: Callable[..., Any],
    x: Tensor,  # (N, D)
    *given: Any,
    rows: Tensor | slice | None = None,
    cols: Tensor | slice | None = None,
    **keywords: Any,
) -> Tensor:
    """w_ij = ∂L/∂s_ij of `L = loss(x, *given, **keywords)`, or by distances ∂L/∂d_ij.

    A pair with a weight below 0 is pulled together, one with a weight above 0 pushed apart (with
    distances the other way round). When x is compared with itself w_ij is what i asks for as an
    anchor: the gradient is dX_i = Σ_j (w_ij + w_ji) x_j, in unit vectors. With `proxy_anchor_loss`
    the rows are proxies. Memory is O(R·C), and O(K·C) for K positive pairs where a loss makes rows
    of these.

    Args:
        loss: a loss of this library or one's own; it must compare one pair of sets.
        x: (N, D) floating point, the embeddings.
        given: further arguments of the loss, such as labels.
        rows: (R,) integers, indices in the caller's order, or a slice. None: all rows.
        cols: (C,) integers, indices in the caller's order, or a slice. None: all columns.
        keywords: keywords of the loss.

    Returns:
        (R, C) float32, or float64 for float64 embeddings.

    Raises:
        ValueError: the loss takes no statistic, has no gradient, or compares several sets.
    """
    function("loss", loss, "a loss")
    check_embeddings("x", x)
    for name, chosen in (("rows", rows), ("cols", cols)):
        if chosen is not None and not isinstance(chosen, slice):
            check_integers(name, chosen, "(R,) or a slice")
    leaf = x.detach().requires_grad_()
    again = [leaf if z is x else z for z in given]  # ref_emb may be the very tensor x
    keywords = {name: leaf if z is x else z for name, z in keywords.items()}
    with torch.enable_grad(), watched() as calls:
        value = loss(leaf, *again, **keywords)
    value = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(value, Tensor):
        raise TypeError(f"loss returned {type(value).__name__}; it must return a tensor")
    if not calls:
        raise ValueError("loss took no statistic; it must be built on pairops.row_stats")
    # What serves an `Aux` alone has no gradient.
    calls = [call for call in calls if any(z.requires_grad for z in call.statistics)]
    if not calls or not value.requires_grad:
        raise ValueError("loss has no gradient by any statistic; there is nothing to weigh")
    pairs = calls[0].pairs.of_one_rank("pair_weights")
    if any(call.pairs.other is not pairs.other for call in calls):
        raise ValueError("loss compares several sets; their pairs have no common weight")
    statistics = [z for call in calls for z in call.statistics if z.requires_grad]
    found = torch.autograd.grad(value.sum(), statistics, allow_unused=True)
    cotangent: dict[int, Tensor | None] = dict(zip([id(z) for z in statistics], found, strict=True))
    n = max([call.pairs.shape[0] for call in calls if _whole(call.pairs)], default=len(x))
    index = [
        _indices(name, chosen, extent, x.device)
        for name, chosen, extent in (("rows", rows, n), ("cols", cols, pairs.shape[1]))
    ]
    weights = x.new_zeros((len(index[0]), len(index[1])), dtype=pairs.dtype)
    with torch.no_grad(), no_autocast(x.device.type):
        for call in calls:
            weights += _of_call(call, index, cotangent)
    return pairs.in_units(weights)


def _indices(name: str, chosen: Tensor | slice | None, extent: int, device: torch.device) -> Tensor:
    if chosen is None or isinstance(chosen, slice):
        return torch.arange(extent, device=device)[slice(None) if chosen is None else chosen]
    if chosen.dtype == torch.bool or chosen.dim() != 1:
        raise ValueError(
            f"{name} is {chosen.dtype} {tuple(chosen.shape)}; it must be a slice or an integer "
            "tensor of one dimension"
        )
    chosen = chosen.to(device, torch.int64)
    low, high = (int(chosen.min()), int(chosen.max())) if len(chosen) else (0, -1)
    if low < -extent or high >= extent:
        raise ValueError(
            f"{name} go from {low} to {high}; they must be from {-extent} to {extent - 1}"
        )
    return torch.where(chosen < 0, chosen + extent, chosen)


def _whole(pairs: Pairs) -> bool:
    """Whether the rows are all of a set, once each."""
    return pairs.copies_of is None and pairs.relation.picked is None


def _of_call(
    call: RecordedCall, index: list[Tensor], cotangent: dict[int, Tensor | None]
) -> Tensor:
    """What the statistics of one call add to the block."""
    pairs, (wanted, cols) = call.pairs, index
    rows, into = wanted, torch.arange(len(wanted), device=wanted.device)
    if pairs.relation.picked is not None:
        pairs = copied(pairs)
    if pairs.copies_of is not None:
        matches = pairs.copies_of.unsqueeze(1) == wanted
        rows, into = matches.nonzero().unbind(1)
    block = Block(pairs, rows, cols)
    weights = block.t.new_zeros(block.t.shape)
    terms = Levels(call.rows, call.cols)
    statistics = [z.detach() for z in call.statistics]
    given = [cotangent.get(id(z)) for z in call.statistics]
    if any(a.grad for term in terms.every for a in term.earlier()):
        given = _passed_on(pairs, call, statistics, given)
    for k, g in enumerate(given):
        if g is not None and terms.every[k].grad:
            term, value, weight = terms.swept(k, statistics, {k: g})
            weights += block.weights(term, int(k >= len(call.rows)), value, weight)
    return weights.new_zeros(len(wanted), len(cols)).index_add(0, into, weights)


def _passed_on(
    pairs: Pairs, call: RecordedCall, statistics: list[Tensor], of_value: list[Tensor | None]
) -> list[Tensor | None]:
    """The cotangents, with what earlier terms get from those that pass their gradient on."""
    found = [
        torch.zeros_like(z) if g is None else g for g, z in zip(of_value, statistics, strict=True)
    ]
    terms = Levels(call.rows, call.cols)
    arguments = [
        extreme_indices(pairs, terms.resolved(k, statistics)[0], int(k >= len(call.rows)))
        for k, term in enumerate(terms.every)
        if term.keeps_argument
    ]
    given = statistics, arguments, None, found, Wanted(False, False)
    levels.backward("blockwise", pairs, call.rows, call.cols, *given)
    return [*found]


class Block:
    """Some rows and columns of the matrix, in the caller's order.

    t: closeness.  present: is it a pair at all?  positive: if so, of which side? (R, C) each.
    """

    def __init__(self, pairs: Pairs, rows: Tensor, cols: Tensor) -> None:
        self.pairs, self.index = pairs, (rows, cols)
        x, y = (
            apply_scale(z[k], None if scale is None else scale[k], pairs.dtype)
            for z, scale, k in (
                (pairs.x, pairs.scales.x, rows), (pairs.other, pairs.scales.y, cols),
            )
        )  # fmt: skip
        s = product(x, y)
        self.t = s if pairs.measure is None else pairs.squares().of_block(s, rows, cols)
        relation = pairs.relation
        row, position = (
            inverse_permutation(relation.permutation_x)[rows],
            inverse_permutation(relation.permutation_y)[cols],
        )
        self.positive = relation.positive(row, position)
        valid = relation.valid_x[rows].unsqueeze(1) & relation.valid_y[cols]
        self.present = (position != relation.self_index[row].unsqueeze(1)) & valid

    def weights(self, term: Term, axis: int, statistic: Tensor, cotangent: Tensor) -> Tensor:
        """(R, C) cotangent · share · slope of every pair that the term counts."""
        owner, partner = self.index[axis], self.index[1 - axis]
        t, selected = self.t, self.present
        if term.side != ALL:
            selected = selected & (self.positive if term.side == POS else ~self.positive)
        if axis == 1:
            t, selected = t.T, selected.T
        if term.above is not None:
            selected = selected & ~(t <= term.above[owner].unsqueeze(1))
        if term.below is not None:
            selected = selected & ~(t >= term.below[owner].unsqueeze(1))
        args: list[Any] = []
        for a in term.args:
            if isinstance(a, Partner):
                args.append(a.values[partner])
            elif isinstance(a, Table):
                args.append(a.values[a.owners[owner]][:, a.partners[partner]])
            elif isinstance(a, Between):
                args.append(product(a.owners[owner], a.partners[partner]))
            else:
                args.append(a[owner].unsqueeze(1) if isinstance(a, Tensor) else a)
        share: Any = 1.0
        if term.statistic == "lse":
            share = torch.exp(term.value(t, *args) - statistic[owner].unsqueeze(1))
        elif term.extreme:
            share = partner == extreme_indices(self.pairs, term, axis)[owner].unsqueeze(1)
        slope = term.slopes(t, *args)[0]
        result = torch.where(selected, cotangent[owner].unsqueeze(1) * share * slope, 0)
        return result if axis == 0 else result.T


def extreme_indices(pairs: Pairs, term: Term, axis: int = 0) -> Tensor:
    """The caller's index of the partner that attains an extreme, −1 where there is none."""
    owners, partners = pairs.shape if axis == 0 else pairs.shape[::-1]
    term = term.over(owners, partners, pairs.dtype, pairs.x.device)
    terms = ((term,), ()) if axis == 0 else ((), (term,))
    with torch.no_grad():
        _, (index,), _ = picked_rows.forward(ENGINES["blockwise"], pairs, *terms)
    return index
