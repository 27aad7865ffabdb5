"""The gradient of row statistics over the rows of all ranks: the second ring of `sharded.py`."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.distributed.allocation import refusing
from pairops.ops.pairs.distances import Measure
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.levels import passes
from pairops.ops.terms.term import Term, Wanted

from .backward import of_terms
from .levels import Levels
from .ring_blocks import BACKWARD, blocks_of_ring, within


class Way(NamedTuple):
    """Indices of the terms that one sweep of a block differentiates, and the distance."""

    mine: Sequence[int]  # terms that the local rows own
    theirs: Sequence[int]  # terms that the others own
    measure: Measure | None


class SweptTerm(NamedTuple):
    """A term with the statistic, cotangent and argument of each owner."""

    term: Term
    statistic: Tensor
    cotangent: Tensor
    argument: Tensor | None  # the partner that attained an extreme

    def tensors(self) -> list[Tensor]:
        """Return the tensors that travel with the owners, one row for each, in this order."""
        known = [self.statistic, self.cotangent]
        return [
            *self.term.tensors("owner", "window"),
            *known,
            *([] if self.argument is None else [self.argument]),
        ]


@refusing
def backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    cotangents: list[Tensor],
    how: tuple[str, Sequence[bool], int],
) -> tuple[list[Tensor | None], dict[int, list[Tensor]]]:
    """Compute gradients by x and y, and by the tensors of each term. how: the engine, flags of
    needed gradients, the piece of the call."""
    terms = Levels(rows, cols)
    index = iter(arguments)
    argument = {k: next(index) for k, term in enumerate(terms.every) if term.keeps_argument}
    gradients: list[Tensor | None] = [None, None]
    by_term: dict[int, list[Tensor]] = {}
    for some in passes(rows, cols):
        swept = [terms.swept(k, statistics, cotangents) for k in some]
        swept_terms = [
            SweptTerm(term, z, g, argument.get(k))
            for k, (term, z, g) in zip(some, swept, strict=True)
        ]
        first_column = sum(k < len(rows) for k in some)
        found, slopes = _ring_backward(pairs, swept_terms, first_column, *how)
        for axis, one in enumerate(found):
            before = gradients[axis]
            gradients[axis] = one if before is None or one is None else before + one
        for place, k in enumerate(some):
            by_term[k] = terms.pass_on(k, slopes.get(place, ()), cotangents)
    return gradients, by_term


def _ring_backward(
    pairs: Pairs,
    swept_terms: Sequence[SweptTerm],
    rows: int,
    engine: str,
    needs: Sequence[bool],
    piece: int,
) -> tuple[list[Tensor | None], dict[int, list[Tensor]]]:
    """Compute gradients by x, y and the vectors of each term. rows: the number of row terms."""
    active = [k for k, known in enumerate(swept_terms) if known.term.grad]
    of_axis = [[k for k in active if k < rows], [k for k in active if k >= rows]]
    by_term = {
        k: [torch.zeros_like(z) for _, z, has_grad in swept_terms[k].term.operands() if has_grad]
        for k in active
    }
    gradients: list[Tensor | None] = [None, None]
    any_vector = any(by_term.values())  # needs_input_grad might differ between ranks
    for axis in (0, 1):
        if not (needs[axis] or any_vector) or (axis == 1 and pairs.y is None):
            continue
        measure, mine, theirs = pairs.measure, of_axis[axis], of_axis[1 - axis]
        ways = [Way(mine, theirs, measure)]
        if pairs.y is None:  # a row is both owner and partner of the same terms
            ways = [Way(active, active, measure)]
            if measure is not None and measure.directed:
                ways = [Way(mine, theirs, measure), Way(theirs, mine, measure.turned())]
        gradients[axis] = _axis_backward(
            pairs, axis, ways, swept_terms, engine, needs[axis], by_term, piece
        )
    return gradients, by_term


def _axis_backward(
    pairs: Pairs,
    axis: int,
    ways: Sequence[Way],
    swept_terms: Sequence[SweptTerm],
    engine: str,
    need: bool,
    by_term: dict[int, list[Tensor]],
    piece: int,
) -> Tensor | None:
    """Compute the gradient by the local rows (axis 0) or columns (1), in their dtype.

    Gradients by vectors with one value for each of them are added to `by_term`.
    """
    local = pairs.x if axis == 0 else pairs.other
    assert pairs.shards is not None, "these pairs have a group"
    last = pairs.shards.first(axis) + len(local)
    total: Tensor | None = None
    travelling: list[Tensor] = []
    for way in ways:
        travelling += [z for k in way.mine for z in swept_terms[k].term.tensors("partner")]
        travelling += [z for k in way.theirs for z in swept_terms[k].tensors()]
    with closing(blocks_of_ring(pairs, axis, travelling, BACKWARD, piece)) as blocks:
        for first, block, came in blocks:
            rest, of_others = iter(came), [block.other if axis == 0 else block.x, *came]
            for way in ways:
                here = [
                    SweptTerm(
                        known.term.with_tensors(iter(known.term.tensors("owner", "window")), rest),
                        known.statistic,
                        known.cotangent,
                        within(known.argument, first, first + block.shape[1 - axis]),
                    )
                    for known in (swept_terms[k] for k in way.mine)
                ]
                there = []
                for known in (swept_terms[k] for k in way.theirs):
                    term = known.term.with_tensors(rest, iter(known.term.tensors("partner")))
                    statistic, cotangent = next(rest), next(rest)
                    argument = next(rest) if known.argument is not None else None
                    argument = within(argument, last - len(local), last)
                    there.append(SweptTerm(term, statistic, cotangent, argument))
                both = (here, there) if axis == 0 else (there, here)
                every = [*both[0], *both[1]]
                of_mine, of_theirs = [(k, True) for k in way.mine], [(k, False) for k in way.theirs]
                order = [*of_mine, *of_theirs] if axis == 0 else [*of_theirs, *of_mine]
                # The owners' tensors of my terms, and the partners' of theirs, are this rank's.
                held = [
                    [
                        (role == "owner") == is_mine
                        for role, _, has_grad in swept_terms[k].term.operands()
                        if has_grad
                    ]
                    for k, is_mine in order
                ]
                *by_set, vectors = of_terms(
                    replace(block, measure=way.measure),
                    [known.term for known in both[0]],
                    [known.term for known in both[1]],
                    engine,
                    [known.statistic for known in every],
                    [known.argument for known in every if known.argument is not None],
                    None,
                    [known.cotangent for known in every],
                    Wanted(need and axis == 0, need and axis == 1, args=held),
                )
                found = by_set[axis]
                if found is not None:
                    total = _joined(found, of_others) if total is None else _added(total, found)
                for place, (k, _) in enumerate(order):
                    for v, (gradient, mine) in enumerate(
                        zip(vectors[place], held[place], strict=True)
                    ):
                        if mine:
                            by_term[k][v] = by_term[k][v] + _joined(gradient, of_others)
                del by_set, found  # else both blocks' gradients would be in memory
    return None if total is None else total.to(local.dtype)


def _added(total: Tensor, found: Tensor) -> Tensor:
    """Return the sum; without grad mode it overwrites `total`."""
    return total + found if torch.is_grad_enabled() else total.add_(found)


def _joined(gradient: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Return `gradient`, in grad mode as a function of `others` even if it is independent of them.

    Without a pair the gradient depends on no gathered tensor, and this rank would miss the sum over
    the ranks in the gathering's backward pass.
    """
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = _Joined.apply(gradient, *others)  # type: ignore[no-untyped-call]
    return result


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *others: Tensor) -> Tensor:
        ctx.shapes = [(z.shape, z.dtype) for z in others]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        zeros = [g.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        return g, *[z if need else None for z, need in zip(zeros, needs, strict=True)]
