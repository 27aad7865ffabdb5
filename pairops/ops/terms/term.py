"""Terms: one statistic for each row or column, of a pair function and its arguments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .accumulators import ACCUMULATORS, Accumulator
from .arguments import (
    Argument,
    Between,
    EarlierAt,
    Given,
    Operand,
    Partner,
    Table,
    checked,
    plain_argument,
    vector,
)
from .checks import flag, one_of, shown
from .functions import Function, affine, identity, source_of
from .plain_numbers import plain_float

POS, NEG, ALL = "pos", "neg", "all"  # sides; a row's own column is on none of them
_SIDES = POS, NEG, ALL


# A frozen dataclass would cost a call for each field, and a small step is mostly calls.
@dataclass(eq=False)
class Term:
    """One statistic per owner, a row or in `cols=` a column: gathered `function(s, *args)`.

    `total`, `lse`, `lowest` and `highest` make terms. If an earlier term found no pair for an
    owner, so that its statistic is infinite, a term that refers to it has none there either.

    Args:
        statistic: "sum", "lse", "lowest" or "highest".
        side: POS, NEG or ALL, the partners that count; a row's own column is on none of them.
        function: the pair function.
        args: its arguments besides s. Each is a number; a tensor (N,) with one value per owner, or
            a tensor with one for all; `partner(v)`, one value per partner; `table(v, a, b)`, one
            value per pair of classes; `between(u, v)`, a product of other embeddings; or an earlier
            term of the same call and owners, whose statistic is a constant, with
            `Earlier(term, grad=True)` one that passes its gradient on. Gradients reach the tensors,
            partner values and other embeddings among them.
        above: a threshold: a number, a tensor (N,) per owner, or an earlier term, without gradient.
            Pairs with s ≤ above are dropped; a NaN stays. None: no threshold.
        below: likewise; pairs with s ≥ below are dropped.
        grad: False for an extreme that only serves as a threshold; no argument is kept for it.
        index: True for an extreme of which `row_stats` also returns the partner that attains it.
    """

    statistic: str
    side: str
    function: Function
    args: tuple[Any, ...] = ()
    above: Any = None
    below: Any = None
    grad: bool = True
    index: bool = False

    def __post_init__(self) -> None:
        if type(self.statistic) is not str or (self.statistic, False) not in ACCUMULATORS:
            one_of("statistic", self.statistic, sorted({name for name, _ in ACCUMULATORS}))
        if type(self.function) is not Function and not isinstance(self.function, Function):
            kind = type(self.function).__name__
            raise TypeError(f"function is {kind}; it must be a pairops.Function")
        if self.grad is not True and self.grad is not False:
            flag("grad", self.grad)
        if not self.grad and self.statistic not in ("lowest", "highest"):
            raise ValueError(
                f"grad is False for a {self.statistic}; it must be True but for extremes"
            )
        if self.index is not False:
            _check_index(self)
        for name, bound in (("above", self.above), ("below", self.below)):
            known = bound is None or (type(bound) is float and bound == bound)
            if known or isinstance(bound, (Tensor, Term, EarlierAt)):
                continue
            setattr(self, name, plain_argument(name, bound))
        if type(self.side) is not str or self.side not in _SIDES:
            raise ValueError(f"side is {shown(self.side)}; it must be POS, NEG or ALL")
        if type(self.args) is not tuple:
            raise TypeError(f"args is {type(self.args).__name__}; it must be a tuple")
        for k, a in enumerate(self.args):
            kind = type(a)
            known = a == a if kind is float else kind in _KINDS
            if kind is Earlier:
                known = type(a.term) is Term and type(a.grad) is bool
            if not known:
                _check_operand(f"argument {k} of {self.function.name}", a)
        if len(self.args) != self.function.arity:
            raise ValueError(
                f"{self.function.name} takes {self.function.arity} arguments besides s, "
                f"but the term gives {len(self.args)}"
            )

    def over(
        self,
        owners: int,
        partners: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> "Term":
        """Check every tensor; return the term in `dtype`, with one value per owner or partner.

        device: where windows are that are given as numbers; None: on the CPU.
        """
        args = [
            checked(f"argument {k} of {self.function.name}", a, owners, partners, dtype, self.grad)
            for k, a in enumerate(self.args)
        ]
        windows = []
        for name, given in (("above", self.above), ("below", self.below)):
            bound = given
            if isinstance(bound, float):
                bound = torch.full((), bound, dtype=dtype, device=device or "cpu")
            if isinstance(bound, Tensor):
                bound = vector(name, bound, owners, dtype, False)
            windows.append(bound)
        above, below = windows
        # Not isinstance: numpy's float64 is a float, but engines know a number by its type.
        if all(type(a) is float for a in self.args) and above is below is None:
            return self
        return replace(self, args=tuple(args), above=above, below=below)

    def value(self, s: Tensor, *args: Any) -> Tensor:
        """Return the function's values, in the shape of s even if it does not depend on s."""
        value = self.function.value(s, *args)
        return torch.as_tensor(value, dtype=s.dtype, device=s.device).expand_as(s)

    def slopes(self, s: Tensor, *args: Any) -> tuple[Any, ...]:
        """Return the slopes; one declared not to be the derivative is held constant."""
        slope, *slopes = self.function.slopes(s, *args)  # type: ignore[misc]
        if not self.function.is_derivative and isinstance(slope, Tensor):
            slope = slope.detach()
        return slope, *slopes

    def operands(self) -> list[Operand]:
        """Return its tensors, in the order in which they are packed and get gradients."""
        found = []
        for a in self.args:
            if type(a) in _WITHOUT_TENSORS:
                continue
            if isinstance(a, Tensor):
                found.append(Operand("owner", a, self.grad))
            elif isinstance(a, Partner):
                found.append(Operand("partner", a.values, self.grad))
            elif isinstance(a, Table):
                classes = Operand("owner", a.owners, False), Operand("partner", a.partners, False)
                found += [Operand("table", a.values, False), *classes]
            elif isinstance(a, Between):
                grad = self.grad and a.grad
                found += [Operand("owner", a.owners, grad), Operand("partner", a.partners, grad)]
        for bound in (self.above, self.below):
            if bound is not None and isinstance(bound, Tensor):
                found.append(Operand("window", bound, False))
        return found

    def filled(self, numbers: Iterator[float], tensors: Iterator[Tensor]) -> "Term":
        """Return the term with other numbers, and other tensors in the order of `operands`."""
        args: list[Argument] = []
        for a in self.args:
            if type(a) is float:
                args.append(next(numbers))
            elif isinstance(a, Partner):
                args.append(Partner(next(tensors)))
            elif isinstance(a, Table):
                args.append(Table(next(tensors), next(tensors), next(tensors)))
            elif isinstance(a, Between):
                args.append(Between(next(tensors), next(tensors), a.grad))
            else:
                args.append(next(tensors) if isinstance(a, Tensor) else a)
        above, below = [
            next(tensors) if isinstance(bound, Tensor) else bound
            for bound in (self.above, self.below)
        ]
        return replace(self, args=tuple(args), above=above, below=below)

    def with_tensors(self, of_owners: Iterator[Tensor], of_partners: Iterator[Tensor]) -> "Term":
        """Return the term with the operands of other owners, windows among them, and partners."""
        tensors = [
            z if role == "table" else next(of_partners if role == "partner" else of_owners)
            for role, z, _ in self.operands()
        ]
        return self.filled(iter([a for a in self.args if type(a) is float]), iter(tensors))

    def tensors(self, *chosen: str) -> list[Tensor]:
        return [z for role, z, _ in self.operands() if role in chosen]

    def windows(self) -> list[Tensor]:
        return [bound for bound in (self.above, self.below) if isinstance(bound, Tensor)]

    def earlier(self) -> list[EarlierAt]:
        """Return the earlier terms that it refers to."""
        return [a for a in (*self.args, self.above, self.below) if isinstance(a, EarlierAt)]

    def describe(self, of_tensor: Callable[[Tensor], str]) -> str:
        """Return a description for ranks to compare: numbers, and `of_tensor` of each tensor."""
        name = f"{self.statistic}:{self.side}:{source_of(self.function)}"
        marks = ">" * (self.above is not None) + "<" * (self.below is not None)
        marks += "@" * self.keeps_argument
        numbers = [plain_float(a) for a in self.args if isinstance(a, float)]
        tensors = [of_tensor(z) for _, z, _ in self.operands()]
        return f"{name}{marks} {numbers} {tensors} {[tuple(a) for a in self.earlier()]}"

    @property
    def extreme(self) -> bool:
        return self.statistic in ("lowest", "highest")

    @property
    def keeps_argument(self) -> bool:
        """Whether `forward` also returns the partner that attained the extreme."""
        return self.extreme and self.grad

    @property
    def has_tile_mask(self) -> bool:
        """Whether `forward` may note, tile by tile, whether a pair is inside the window."""
        return not (self.above is None and self.below is None) and not self.extreme

    @property
    def monoid(self) -> Accumulator:
        return ACCUMULATORS[self.statistic, self.keeps_argument]


def indices(terms: Sequence[Term]) -> list[int]:
    """Return which of the kept arguments are results, by their places among these."""
    return [k for k, term in enumerate([z for z in terms if z.keeps_argument]) if term.index]


@dataclass(eq=False)
class Earlier:
    """The statistic of an earlier term of the same call, one value per owner.

    A term in the place of an argument is the same: a constant.

    Args:
        term: the earlier term.
        grad: True lets the gradient by the argument go on to the earlier term.
    """

    term: Term
    grad: bool = False


_KINDS = (Tensor, Parameter, Partner, Table, Between, Term, EarlierAt)
_WITHOUT_TENSORS = frozenset((float, Term, Earlier, EarlierAt))


def _check_index(term: Term) -> None:
    flag("index", term.index)
    if term.statistic not in ("lowest", "highest"):
        raise ValueError(f"index is True for a {term.statistic}; it must be False but for extremes")
    if not term.grad:
        raise ValueError(
            "grad is False and index True; an index keeps its pair anyway, so leave grad out, "
            "and write value.detach() for a constant"
        )


def _check_operand(name: str, operand: object) -> None:
    """Refuse a value that is no argument of a pair function."""
    if isinstance(operand, Earlier):
        if not isinstance(operand.term, Term):
            kind = type(operand.term).__name__
            raise TypeError(f"term of Earlier is {kind}; it must be a pairops.Term")
        flag("grad of Earlier", operand.grad)
    elif not isinstance(operand, _KINDS):
        plain_argument(name, operand)


class Wanted(NamedTuple):
    """Which gradients an engine is to return."""

    x: bool
    y: bool
    rounded: bool = (
        False  # True: they may be in the dtype of the embeddings, since nothing is added
    )
    args: Sequence[Sequence[bool]] | None = None  # by each operand with a gradient; None: all

    def of(self, terms: Sequence[int]) -> "Wanted":
        """Return the same for some of the terms."""
        return self if self.args is None else self._replace(args=[self.args[k] for k in terms])


# The gradients by x and y alone, made once: a small step is mostly Python.
BY_SETS = {(x, y): Wanted(x, y, True) for x in (False, True) for y in (False, True)}


def total(
    side: str,
    *args: "Given | Term | Earlier",
    function: Function = affine,
    above: float | Tensor | Term | None = None,
    below: float | Tensor | Term | None = None,
) -> Term:
    """Σ over a side of `function(s, *args)`.

    Args:
        side: POS, NEG or ALL.
        args: the arguments of the function besides s, as in `Term`; of the default function scale
            and base.
        function: the pair function, by default scale·(s − base).
        above: a threshold, as in `Term`: pairs with s ≤ above are dropped.
        below: a threshold, as in `Term`: pairs with s ≥ below are dropped.

    Returns:
        The term, for `row_stats`; a side without pairs gives 0.
    """
    return Term("sum", side, function, args, above, below)


def lse(
    side: str,
    *args: "Given | Term | Earlier",
    function: Function = affine,
    above: float | Tensor | Term | None = None,
    below: float | Tensor | Term | None = None,
) -> Term:
    """log Σ exp over a side of `function(s, *args)`.

    Args:
        side: POS, NEG or ALL.
        args: the arguments of the function besides s, as in `Term`; of the default function scale
            and base.
        function: the pair function, by default scale·(s − base).
        above: a threshold, as in `Term`: pairs with s ≤ above are dropped.
        below: a threshold, as in `Term`: pairs with s ≥ below are dropped.

    Returns:
        The term, for `row_stats`; a side without pairs gives −inf.
    """
    return Term("lse", side, function, args, above, below)


def lowest(
    side: str,
    *args: "Given | Term | Earlier",
    function: Function = identity,
    above: float | Tensor | Term | None = None,
    below: float | Tensor | Term | None = None,
    grad: bool = True,
    index: bool = False,
) -> Term:
    """The lowest `function(s, *args)` of a side.

    Args:
        side: POS, NEG or ALL.
        args: the arguments of the function besides s, as in `Term`.
        function: the pair function, by default s: the statistic is the lowest similarity.
        above: a threshold, as in `Term`: pairs with s ≤ above are dropped.
        below: a threshold, as in `Term`: pairs with s ≥ below are dropped.
        grad: False if the extreme only serves as a threshold.
        index: True makes the entry in the result of `row_stats` a pair (value, index): index is the
            partner's place in the caller's order (int64, the lowest of equal ones, over the rows of
            all ranks), −1 for a side without pairs.

    Returns:
        The term, for `row_stats`; a side without pairs gives +inf.
    """
    return Term("lowest", side, function, args, above, below, grad, index)


def highest(
    side: str,
    *args: "Given | Term | Earlier",
    function: Function = identity,
    above: float | Tensor | Term | None = None,
    below: float | Tensor | Term | None = None,
    grad: bool = True,
    index: bool = False,
) -> Term:
    """The highest `function(s, *args)` of a side.

    Args:
        side: POS, NEG or ALL.
        args: the arguments of the function besides s, as in `Term`.
        function: the pair function, by default s: the statistic is the highest similarity.
        above: a threshold, as in `Term`: pairs with s ≤ above are dropped.
        below: a threshold, as in `Term`: pairs with s ≥ below are dropped.
        grad: False if the extreme only serves as a threshold.
        index: True makes the entry in the result of `row_stats` a pair (value, index): index is the
            partner's place in the caller's order (int64, the lowest of equal ones, over the rows of
            all ranks), −1 for a side without pairs.

    Returns:
        The term, for `row_stats`; a side without pairs gives −inf.
    """
    return Term("highest", side, function, args, above, below, grad, index)
