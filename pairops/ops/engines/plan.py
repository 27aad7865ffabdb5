"""Plans of calls of the compiled engines: what follows from the kinds of their terms, made once and
then looked up, and which calls the CPU engine serves at once.

A small step is mostly Python, and most of it would ask the same of the same terms again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from pairops.ops.autograd.node import followed_by_autograd_alone
from pairops.ops.bindings.extension import MISSING
from pairops.ops.bindings.extension import native as _native
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import Between, EarlierAt
from pairops.ops.terms.functions import one
from pairops.ops.terms.levels import numbered, passes, sweeps
from pairops.ops.terms.recipe import cpu_key, cuda_key
from pairops.ops.terms.term import POS, Earlier, Term, indices

SERVED: frozenset[str] = frozenset(_native.terms() if _native else ())

# The source of an operand, as in csrc/bindings/plan.h: the next number, the next tensor, none; or
# the statistic of an earlier term, by its index in the call.
NUMBER, VECTOR, ABSENT = -1, -2, -3


class Kind(NamedTuple):
    """A term without its numbers and tensors."""

    cpu_key: str  # its name in the extension, for a CPU
    cuda_key: str  # and for a GPU, where the kernel learns its side
    side: str
    args: list[int]  # the source of each
    onward: list[int]  # the arguments whose gradient goes on to their earlier terms
    above: int
    below: int
    has_tile_mask: bool
    # Whether a backward sweep differentiates it: not an extreme, whose pairs are few, nor a count.
    swept: bool
    neutral: float  # the statistic of an owner without pairs


@dataclass(eq=False)
class Plan:
    """A call without its numbers and tensors."""

    kinds: list[Kind]  # of rows, and then of columns
    count: int
    rows: int
    sweeps: list[list[int]]
    passes: list[list[int]]  # the swept terms of each sweep of the backward pass
    # Whether all operands are numbers or earlier terms. Then nothing is to be checked or cast, and
    # one call makes the whole gradient, but for the pairs of extremes.
    short: bool
    one_call: bool  # as `short`, but windows and operands may be tensors
    keeping: int  # the number of terms with a tile mask
    constant: list[int]  # the terms that have no gradient
    extremes: list[int]  # the extremes that have one
    indices: list[int]  # the places among these of terms whose index is a result
    few: bool  # all terms are extremes of s itself: the CPU engine needs no sweep
    has_product: bool  # an argument is a product of further embeddings; one set then counts as two
    # Earlier terms that are arguments: index, neutral value, and whether each owner with a positive
    # has a pair.
    arguments: list[tuple[int, float, bool]]
    vectors: bool  # an operand is a tensor
    earlier_args: bool  # an argument is an earlier term
    compiled: Any = None  # the extension's plan; False: it does not serve all terms
    of_cuda: dict[Any, Any] = field(default_factory=dict)  # those of the engine `cuda`


def plan_at_once(
    asked_for: str,
    pairs: Pairs,
    rows: tuple[Term, ...],
    cols: tuple[Term, ...],
    *,
    short: bool = True,
) -> Plan | None:
    """Return the plan of a call that the engine serves without an op, or None: not at once.

    asked_for: the engine of this thread.  short: only of terms without tensors.
    """
    if pairs.shards is not None or not pairs.x.is_cpu or asked_for not in ("auto", "cpu"):
        return None
    if pairs.relation.picked is not None:
        return None
    if not followed_by_autograd_alone(pairs.x, pairs.y):
        return None
    plan = plan_of(rows, cols)
    if plan is None or not (plan.short if short else plan.one_call):
        return None
    if not (plan.compiled or serves(plan)):
        return None
    return plan if declines_pairs(pairs) is None else None


def declines_pairs(pairs: Pairs) -> str | None:
    """Return why the engine can serve no call with these pairs, or None."""
    if MISSING is not None:
        return MISSING
    x, scale = pairs.x, pairs.scales.x
    if not x.is_cpu:
        return f"x is on {x.device.type}; the cpu engine is for the CPU"
    if scale is not None and scale.dtype != torch.float64:
        return "norms are float32; the cpu engine reads them in float64"
    return None


def serves(plan: Plan) -> bool:
    """Return whether all terms of a call are compiled; if so compile the plan, once."""
    if plan.compiled is None:
        compiled: Any = False
        if SERVED.issuperset([kind.cpu_key for kind in plan.kinds]):
            terms = [
                (
                    kind.cpu_key, k >= plan.rows, kind.args, kind.onward, kind.above, kind.below,
                    kind.has_tile_mask, kind.neutral,
                )
                for k, kind in enumerate(plan.kinds)
            ]  # fmt: skip
            compiled = _native.Plan(terms, plan.sweeps, plan.passes)
        plan.compiled = compiled  # last, since another thread may ask meanwhile
    return plan.compiled is not False


_PLANS: dict[Any, Plan | None] = {}


def plan_of(rows: Sequence[Term], cols: Sequence[Term]) -> Plan | None:
    """Return the plan of terms that name or number earlier ones; None if one is not earlier."""
    key: tuple[Any, ...] = ()
    # One loop, since a function for each term would be a call for each.
    for axis_terms in (rows, cols):
        place: dict[Term, int] = {}
        for k, term in enumerate(axis_terms):
            operands: tuple[Any, ...] = ()
            for a in (*term.args, term.above, term.below):
                kind: Any = type(a)
                if kind is Term:
                    kind = place[a] if a in place else "none"  # noqa: SIM401
                elif kind is Earlier:
                    kind = (place.get(a.term, "none"), a.grad)
                elif kind is EarlierAt:
                    kind = a
                elif kind is Between:
                    kind = (Between, a.grad)
                operands += (kind,)
            flags = term.grad, term.index
            key += ((term.statistic, term.side, term.function.name, operands, *flags),)
            place[term] = k
        key += ("|",)
    try:
        return _PLANS[key]
    except KeyError:
        found = _PLANS[key] = _made(rows, cols)
        return found


def _made(rows: Sequence[Term], cols: Sequence[Term]) -> Plan | None:
    try:
        rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
    except (ValueError, TypeError):
        return None
    terms = (*rows, *cols)
    first = [0] * len(rows) + [len(rows)] * len(cols)

    def source(k: int, operand: Any) -> int:
        if type(operand) is EarlierAt:
            return first[k] + operand.place
        return ABSENT if operand is None else NUMBER if type(operand) is float else VECTOR

    kinds = [
        Kind(
            cpu_key(term),
            cuda_key(term),
            term.side,
            [source(k, a) for a in term.args],
            [j for j, a in enumerate(term.args) if type(a) is EarlierAt and a.grad],
            source(k, term.above),
            source(k, term.below),
            term.has_tile_mask,
            not term.extreme and term.function is not one,
            term.monoid.neutral,
        )
        for k, term in enumerate(terms)
    ]
    # The extension passes gradients on from swept terms to swept ones.
    alone = all(
        kind.swept and all(kinds[kind.args[j]].swept for j in kind.onward)
        for kind in kinds
        if kind.onward
    )
    earlier = {
        first[k] + a.place
        for k, term in enumerate(terms)
        for a in term.args
        if type(a) is EarlierAt
    }
    return Plan(
        kinds=kinds,
        count=len(terms),
        rows=len(rows),
        sweeps=sweeps(rows, cols),
        passes=[
            some for each in passes(rows, cols) if (some := [k for k in each if kinds[k].swept])
        ],
        short=alone and all(VECTOR not in (*kind.args, kind.above, kind.below) for kind in kinds),
        one_call=alone and all(kind.swept or VECTOR not in kind.args for kind in kinds),
        keeping=sum(kind.has_tile_mask for kind in kinds),
        constant=[k for k, term in enumerate(terms) if not term.grad],
        extremes=[k for k, term in enumerate(terms) if term.keeps_argument],
        indices=indices(terms),
        few=not any(kind.swept or kind.args for kind in kinds),
        has_product=any(isinstance(a, Between) for term in terms for a in term.args),
        arguments=[
            (k, kinds[k].neutral, terms[k].side == POS and terms[k].above is terms[k].below is None)
            for k in sorted(earlier)
            if kinds[k].neutral
        ],
        vectors=any(VECTOR in (*kind.args, kind.above, kind.below) for kind in kinds),
        earlier_args=any(source >= 0 for kind in kinds for source in kind.args),
    )
