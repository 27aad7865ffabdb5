"""Earlier terms: the sweeps that a call takes, and terms with earlier statistics in them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .arguments import Between, EarlierAt, Partner
from .term import POS, Earlier, Term


def numbered(terms: Sequence[Term], others: Sequence[Term], name: str) -> tuple[Term, ...]:
    """Number the earlier terms that terms refer to; ValueError if one is not earlier.

    others: the terms of the other owners.  name: of the argument that holds `terms`.
    """
    return tuple([_numbered(k, term, terms, others, name) for k, term in enumerate(terms)])


def _numbered(k: int, term: Term, terms: Sequence[Term], others: Sequence[Term], name: str) -> Term:
    given = (*term.args, term.above, term.below)
    if not any(isinstance(a, (Term, Earlier)) for a in given):
        return term
    for a in given:
        if isinstance(a, EarlierAt):
            raise TypeError(f"term {k} of {name} mixes terms and places; it must name terms")

    def place(a: Any, window: bool = False) -> Any:
        if not isinstance(a, (Term, Earlier)):
            return a
        earlier = a if isinstance(a, Term) else a.term
        grad = isinstance(a, Earlier) and a.grad
        for j, one in enumerate(terms[:k]):
            if one is earlier:
                return EarlierAt(j, grad, window)
        what = f"term {k} of {name} ({term.statistic} of {term.function.name}) refers to"
        if earlier is term:
            raise ValueError(f"{what} itself; it must refer to an earlier term of the call")
        if any(one is earlier for one in terms):
            raise ValueError(f"{what} a later term; that must stand before it")
        if any(one is earlier for one in others):
            raise ValueError(
                f"{what} a term of other owners; rows may refer to rows, and cols to cols"
            )
        raise ValueError(f"{what} a term that is not in this call; it must be given before it")

    args = tuple([place(a) for a in term.args])
    above, below = place(term.above, True), place(term.below, True)
    return replace(term, args=args, above=above, below=below)


def after(terms: Sequence[Term], count: int) -> tuple[Term, ...]:
    """Renumber the terms for a call where `count` others of the same owners precede them."""

    def place(a: Any) -> Any:
        return a._replace(place=a.place + count) if type(a) is EarlierAt else a

    return tuple(
        [
            replace(
                term,
                args=tuple([place(a) for a in term.args]),
                above=place(term.above),
                below=place(term.below),
            )
            for term in terms
        ]
    )


def sweeps(rows: Sequence[Term], cols: Sequence[Term]) -> list[list[int]]:
    """Return the indices among (*rows, *cols) of the terms of each sweep, in order.

    A sweep of positives is short, and any other goes through all pairs. So positives that others
    wait for come first, and the rest in a sweep that is needed anyway.
    """
    terms = [(0, term) for term in rows] + [(len(rows), term) for term in cols]
    needs = [{first + a.place for a in term.earlier()} for first, term in terms]
    short = [term.side == POS for _, term in terms]
    result: list[list[int]] = []
    done: set[int] = set()
    while len(done) < len(terms):
        ready = [k for k in range(len(terms)) if k not in done and needs[k] <= done]
        first = [k for k in _awaited(needs, short, done) if k in ready]
        result.append(first or ready)
        done.update(result[-1])
    return result


def _awaited(needs: Sequence[set[int]], short: Sequence[bool], done: set[int]) -> set[int]:
    """Return the short terms that a long one waits for which waits for short ones alone."""
    result: set[int] = set()
    for k, is_short in enumerate(short):
        found: set[int] = set()  # not set[int](), which torch.compile cannot trace
        todo = needs[k] - done
        while todo:
            found |= todo
            todo = {j for one in todo for j in needs[one]} - done - found
        if not is_short and k not in done and all(short[j] for j in found):
            result |= found
    return result


def passes(rows: Sequence[Term], cols: Sequence[Term]) -> list[list[int]]:
    """Return the indices of the terms that each pass differentiates, in order.

    A term that passes its gradient on is in a pass before the term that gets it; a term without
    gradient is in none.
    """
    terms = [(0, term) for term in rows] + [(len(rows), term) for term in cols]
    level = [0] * len(terms)
    for k in reversed(range(len(terms))):
        first, term = terms[k]
        for a in term.earlier():
            if a.grad and term.grad:
                level[first + a.place] = max(level[first + a.place], level[k] + 1)
    found: list[list[int]] = [[] for _ in range(max(level, default=0) + 1)]
    for k, (_, term) in enumerate(terms):
        if term.grad:
            found[level[k]].append(k)
    return [some for some in found if some]


def resolved(
    term: Term, terms: Sequence[Term], statistics: Sequence[Tensor], known: dict[Any, Tensor]
) -> tuple[Term, Tensor | None]:
    """Replace earlier terms by their statistics; return the term, and its owners without pairs.

    terms: of the same owners, with their statistics.  An owner for which an earlier term that is an
    argument found no pair has none; its argument becomes 1, since functions may divide by it.
    known: tensors made for other terms from the same statistics, each a launch on a GPU.
    """
    if not term.earlier():
        return term, None
    earlier_positions = [a.place for a in term.args if type(a) is EarlierAt]
    missing = known.get(tuple(earlier_positions))
    if missing is None:
        missing = without_pairs(term, terms, statistics)
        if missing is not None:
            known[tuple(earlier_positions)] = missing

    def value(a: Any) -> Any:
        if not isinstance(a, EarlierAt):
            return a
        has_grad = a.grad and term.grad and terms[a.place].grad
        statistic = statistics[a.place] if has_grad else statistics[a.place].detach()
        if missing is None or a.window:
            return statistic
        key = (*earlier_positions, a, has_grad)
        if key not in known:
            known[key] = torch.where(missing, 1.0, statistic)
        return known[key]

    args = tuple([value(a) for a in term.args])
    return replace(term, args=args, above=value(term.above), below=value(term.below)), missing


def without_pairs(term: Term, terms: Sequence[Term], statistics: Sequence[Tensor]) -> Tensor | None:
    """Return (N,) True for owners for which an earlier term that is an argument found no pair; None
    if no such term is an argument."""
    missing = None
    for a in term.args:
        if type(a) is EarlierAt and terms[a.place].statistic != "sum":
            found = statistics[a.place] == terms[a.place].monoid.neutral
            missing = found if missing is None else missing | found
    return missing


def by_earlier(term: Term) -> list[EarlierAt | None]:
    """Return the earlier term, or None, that each operand with a gradient of the `resolved` term
    comes from."""
    found: list[EarlierAt | None] = []
    for a in term.args:
        if isinstance(a, (Tensor, Partner, EarlierAt)):
            found.append(a if isinstance(a, EarlierAt) else None)
        elif isinstance(a, Between) and a.grad:
            found += [None, None]
    return found
