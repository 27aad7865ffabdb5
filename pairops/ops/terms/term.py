"""Terms: what a loss asks of each row or column, a gathered pair function and its arguments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .accumulators import GATHERS, Gather
from .functions import Function, affine, identity, source_of
from .plain_numbers import plain_float

POS, NEG, ALL = "pos", "neg", "all"  # sides; a row's own column is on none of them


@dataclass(frozen=True, eq=False)
class Partner:
    """Values (M,) that vary with the partner of a pair, not with the owner of the statistic."""

    values: Tensor  # (M,) in a row term, (N,) in a column term


@dataclass(frozen=True, eq=False)
class Table:
    """values[owners_i, partners_j]: one value for each pair of classes, without gradient."""

    values: Tensor  # (A, B)
    owners: Tensor  # (N,) int64 in a row term, (M,) in a column term
    partners: Tensor  # (M,) int64, or (N,)


Argument = float | Tensor | Partner | Table


class Operand(NamedTuple):
    """A tensor of a term."""

    role: Literal["owner", "partner", "table", "window"]  # owner, partner: one value for each
    tensor: Tensor
    has_grad: bool


def partner(values: Tensor) -> Partner:
    return Partner(values)


def table(values: Tensor, owners: Tensor, partners: Tensor) -> Table:
    """values (A, B) looked up by the class of the owner and that of the partner of a pair."""
    return Table(values, owners, partners)


def checked(
    name: str, argument: object, owners: int, partners: int, dtype: torch.dtype, grad: bool
) -> Argument:
    """The argument in `dtype`, with one value per owner or partner."""
    if isinstance(argument, Partner):
        return Partner(vector(name, argument.values, partners, dtype, grad))
    if isinstance(argument, Table):
        return _table(name, argument, owners, partners, dtype)
    if isinstance(argument, Tensor):
        return vector(name, argument, owners, dtype, grad)
    number = argument if type(argument) is float else plain_float(argument)
    if number is not None:
        return number
    raise TypeError(
        f"{name} is {type(argument).__name__}; it must be a number, a tensor, partner(tensor) or "
        "table(tensor, classes, classes)"
    )


def vector(name: str, values: Tensor, length: int, dtype: torch.dtype, grad: bool) -> Tensor:
    if not isinstance(values, Tensor) or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} is {kind}; it must be a real tensor")
    if values.dim() and values.shape != (length,):
        if values.numel() != 1:
            shape = tuple(values.shape)
            raise ValueError(
                f"{name} has shape {shape}; it must be ({length},) or have one element"
            )
        values = values.reshape(())
    return (values if grad else values.detach()).to(dtype).expand(length)


def _table(name: str, given: Table, owners: int, partners: int, dtype: torch.dtype) -> Table:
    if given.values.dim() != 2 or not given.values.is_floating_point():
        raise ValueError(
            f"{name} is a {given.values.dtype} table of shape {tuple(given.values.shape)}; it must "
            "be floating-point (A, B)"
        )
    for classes, length in ((given.owners, owners), (given.partners, partners)):
        if classes.shape != (length,) or classes.dtype != torch.int64:
            raise ValueError(
                f"{name} has {classes.dtype} classes of shape {tuple(classes.shape)}; they must be "
                f"int64 ({length},)"
            )
    return Table(given.values.detach().to(dtype), given.owners, given.partners)


@dataclass(frozen=True, eq=False)
class Term:
    """One statistic per owner, a row or in `cols=` a column: gathered function(s, *args).

    args: numbers; tensors (N,) with one value per owner, or with one for all; or `partner(v)`, one
    value per partner. Gradients reach all tensors among them.

    above, below: thresholds (N,) per owner, without gradient. Pairs with s ≤ above or s ≥ below are
    dropped; a NaN is neither, and stays.

    grad: an extreme that only serves as a threshold says False, and no argument is kept for it.
    """

    gather: str
    side: str
    function: Function
    args: tuple[Argument, ...] = ()
    above: Tensor | None = None
    below: Tensor | None = None
    grad: bool = True

    def __post_init__(self) -> None:
        if (self.gather, False) not in GATHERS:
            names = ", ".join(sorted({name for name, _ in GATHERS}))
            raise ValueError(f"gather is {self.gather!r}; it must be one of {names}")
        if not isinstance(self.function, Function):
            kind = type(self.function).__name__
            raise TypeError(f"function is {kind}; it must be a pairops.Function")
        if not self.grad and not self.extreme:
            raise ValueError(f"grad is False for a {self.gather}; it must be True but for extremes")
        for name, bound in (("above", self.above), ("below", self.below)):
            if bound is not None and not isinstance(bound, Tensor):
                kind = type(bound).__name__
                raise TypeError(f"{name} is {kind}; it must be a tensor (N,) or with one element")
        if self.side not in (POS, NEG, ALL):
            raise ValueError(f"side is {self.side!r}; it must be POS, NEG or ALL")
        if len(self.args) != self.function.arity:
            raise ValueError(
                f"{self.function.name} takes {self.function.arity} arguments besides s, "
                f"but the term gives {len(self.args)}"
            )

    def over(self, owners: int, partners: int, dtype: torch.dtype) -> "Term":
        """This term with every tensor checked, in `dtype`, one value per owner or partner."""
        args = [
            checked(f"argument {k} of {self.function.name}", a, owners, partners, dtype, self.grad)
            for k, a in enumerate(self.args)
        ]
        above, below = (
            None if bound is None else vector(name, bound, owners, dtype, False)
            for name, bound in (("above", self.above), ("below", self.below))
        )
        if all(isinstance(a, float) for a in self.args) and above is below is None:
            return self
        return replace(self, args=tuple(args), above=above, below=below)

    def value(self, s: Tensor, *args: Any) -> Tensor:
        """The function's values, as many as there are in s also if it does not depend on s."""
        value = self.function.value(s, *args)
        return torch.as_tensor(value, dtype=s.dtype, device=s.device).expand_as(s)

    def slopes(self, s: Tensor, *args: Any) -> tuple[Any, ...]:
        """The function's slopes; one that is declared not to be the derivative is held constant."""
        slope, *slopes = self.function.slopes(s, *args)  # type: ignore[misc]
        if not self.function.is_derivative and isinstance(slope, Tensor):
            slope = slope.detach()
        return slope, *slopes

    def operands(self) -> list[Operand]:
        """Its tensors, in the order in which they are packed and get their gradients."""
        found = []
        for a in self.args:
            if type(a) is float:
                continue
            if isinstance(a, Tensor):
                found.append(Operand("owner", a, self.grad))
            elif isinstance(a, Partner):
                found.append(Operand("partner", a.values, self.grad))
            elif isinstance(a, Table):
                classes = Operand("owner", a.owners, False), Operand("partner", a.partners, False)
                found += [Operand("table", a.values, False), *classes]
        for bound in (self.above, self.below):
            if bound is not None:
                found.append(Operand("window", bound, False))
        return found

    def filled(self, numbers: Iterator[float], tensors: Iterator[Tensor]) -> "Term":
        """The same term of other numbers, and of other tensors in the order of `operands`."""
        args: list[Argument] = []
        for a in self.args:
            if type(a) is float:
                args.append(next(numbers))
            elif isinstance(a, Partner):
                args.append(Partner(next(tensors)))
            elif isinstance(a, Table):
                args.append(Table(next(tensors), next(tensors), next(tensors)))
            else:
                args.append(next(tensors))
        above = None if self.above is None else next(tensors)
        below = None if self.below is None else next(tensors)
        return replace(self, args=tuple(args), above=above, below=below)

    def between(self, of_owners: Iterator[Tensor], of_partners: Iterator[Tensor]) -> "Term":
        """The same term of other owners and partners: of each its operands, windows with owners."""
        tensors = [
            z if role == "table" else next(of_partners if role == "partner" else of_owners)
            for role, z, _ in self.operands()
        ]
        return self.filled(iter([a for a in self.args if type(a) is float]), iter(tensors))

    def tensors(self, *roles: str) -> list[Tensor]:
        return [z for role, z, _ in self.operands() if role in roles]

    def windows(self) -> list[Tensor]:
        return [bound for bound in (self.above, self.below) if bound is not None]

    def describe(self, of_tensor: Callable[[Tensor], str]) -> str:
        """What ranks compare of a term: its numbers, and of each tensor what `of_tensor` says."""
        name = f"{self.gather}:{self.side}:{source_of(self.function)}"
        marks = ">" * (self.above is not None) + "<" * (self.below is not None)
        marks += "@" * self.keeps_argument
        numbers = [plain_float(a) for a in self.args if not isinstance(a, (Tensor, Partner, Table))]
        return f"{name}{marks} {numbers} {[of_tensor(z) for _, z, _ in self.operands()]}"

    @property
    def extreme(self) -> bool:
        return self.gather in ("lowest", "highest")

    @property
    def keeps_argument(self) -> bool:
        """Does `forward` also return which partner attained the extreme?"""
        return self.extreme and self.grad

    @property
    def keeps_bits(self) -> bool:
        """May `forward` note for `backward`, tile by tile, whether the window kept a pair?"""
        return bool(self.windows()) and not self.extreme

    @property
    def monoid(self) -> Gather:
        return GATHERS[self.gather, self.keeps_argument]


class Wanted(NamedTuple):
    """Which gradients an engine is to return."""

    x: bool
    y: bool
    rounded: bool = False  # may they come in the dtype of the embeddings? Nothing is added to them
    args: Sequence[Sequence[bool]] | None = None  # by each operand with a gradient; None: all

    def of(self, terms: Sequence[int]) -> "Wanted":
        """The same of some of the terms."""
        return self if self.args is None else self._replace(args=[self.args[k] for k in terms])


def total(
    side: str,
    *args: Argument,
    function: Function = affine,
    above: Tensor | None = None,
    below: Tensor | None = None,
) -> Term:
    """Σ over a side of function(s, *args); by default of scale·(s − base)."""
    return Term("sum", side, function, args, above, below)


def lse(
    side: str,
    *args: Argument,
    function: Function = affine,
    above: Tensor | None = None,
    below: Tensor | None = None,
) -> Term:
    """log Σ exp over a side of function(s, *args); by default of scale·(s − base)."""
    return Term("lse", side, function, args, above, below)


def lowest(
    side: str,
    *args: Argument,
    function: Function = identity,
    above: Tensor | None = None,
    below: Tensor | None = None,
    grad: bool = True,
) -> Term:
    """The lowest function(s, *args) of a side; by default the lowest similarity."""
    return Term("lowest", side, function, args, above, below, grad)


def highest(
    side: str,
    *args: Argument,
    function: Function = identity,
    above: Tensor | None = None,
    below: Tensor | None = None,
    grad: bool = True,
) -> Term:
    """The highest function(s, *args) of a side; by default the highest similarity."""
    return Term("highest", side, function, args, above, below, grad)
