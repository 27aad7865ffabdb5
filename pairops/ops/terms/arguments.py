"""Arguments of a pair function: numbers, vectors of owners or partners, tables, further
embeddings, earlier terms."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .plain_numbers import plain_float
from .tensor_checks import FLOATS, check_classes, check_embeddings, check_integers, check_real


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

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.values, self.owners, self.partners


@dataclass(frozen=True, eq=False)
class Between:
    """<owners_i, partners_j>: one value for each pair, of a second pair of embeddings."""

    owners: Tensor  # (N, E) in a row term, (M, E) in a column term
    partners: Tensor  # (M, E), or (N, E)
    grad: bool  # False: both are constants, and nobody multiplies for their gradients


class Operand(NamedTuple):
    """A tensor of a term."""

    role: Literal[
        "owner", "partner", "table", "window"
    ]  # owner or partner: one value, or one row, for each of them
    tensor: Tensor
    has_grad: bool


class EarlierAt(NamedTuple):
    """An earlier term by its index among those of the same owners, rows or `cols`.

    window: it is a threshold, which may be infinite.
    """

    place: int
    grad: bool = False
    window: bool = False


Given = float | Tensor | Partner | Table | Between
Argument = Given | EarlierAt


def partner(values: Tensor) -> Partner:
    """Give a pair function one value per partner, as one of a term's arguments.

    Args:
        values: (M,) real numbers in a row term, (N,) in a column term; with gradient.

    Returns:
        The argument, for `total`, `lse`, `lowest` or `highest`.
    """
    check_real("values", values)
    return Partner(values)


def table(values: Tensor, owners: Tensor, partners: Tensor) -> Table:
    """Look values up by the class of the owner and that of the partner of a pair.

    Args:
        values: (A, B) floating point, without gradient.
        owners: (N,) int64 from 0 to A − 1 in a row term, (M,) in a column term: the owner's class.
        partners: (M,) int64 from 0 to B − 1 in a row term, (N,) in a column term: the partner's
            class.

    Returns:
        The argument values[owners_i, partners_j], for `total`, `lse`, `lowest` or `highest`.
    """
    check_real("values", values)
    if values.dim() != 2 or values.dtype not in FLOATS:
        raise ValueError(
            f"values is a {values.dtype} table of shape {tuple(values.shape)}; it must be "
            "floating-point (A, B)"
        )
    for name, classes, number in (("owners", owners, 0), ("partners", partners, 1)):
        check_integers(name, classes)
        if classes.dim() != 1 or classes.dtype != torch.int64:
            raise ValueError(
                f"{name} has {classes.dtype} classes of shape {tuple(classes.shape)}; they must be "
                "int64 (N,)"
            )
        check_classes(name, classes, values.shape[number], "values have on that side")
    return Table(values, owners, partners)


def between(owners: Tensor, partners: Tensor) -> Between:
    """Compare each pair a second time, by the dot product of other embeddings.

    The matrix of these products is never held, on any engine but "dense". Embeddings that require
    no gradient when `between` is called are constants. Where one of them requires a gradient it
    gets one, by the engines "blockwise" and "dense"; write `.detach()` where it needs none.

    Args:
        owners: (N, E) floating point in a row term, (M, E) in a column term: one row for each
            owner. As they are: normalise them for a cosine.
        partners: (M, E) floating point in a row term, (N, E) in a column term: one row for each
            partner. float16 and bfloat16 are multiplied in float32.

    Returns:
        The argument <owners_i, partners_j>, for `total`, `lse`, `lowest` or `highest`.

    Raises:
        ValueError, TypeError: the two are no matrices of floating-point numbers, or of different E.
    """
    check_embeddings("owners", owners)
    check_embeddings("partners", partners)
    if owners.shape[1] != partners.shape[1]:
        raise ValueError(
            f"partners has shape {tuple(partners.shape)} and owners {tuple(owners.shape)}; both "
            "must have the same E, their number of columns"
        )
    # Forward-mode derivatives are no property of a tensor that torch.func wraps.
    grad = owners.requires_grad or partners.requires_grad or forward_ad._current_level >= 0
    return Between(owners, partners, grad)


def checked(
    name: str, argument: object, owners: int, partners: int, dtype: torch.dtype, grad: bool
) -> Argument:
    """Check the argument; return it in `dtype`, with one value per owner or partner."""
    if isinstance(argument, Partner):
        return Partner(vector(name, argument.values, partners, dtype, grad))
    if isinstance(argument, Table):
        return _table(name, argument, owners, partners, dtype)
    if isinstance(argument, Between):
        return _between(name, argument, owners, partners, dtype, grad)
    if isinstance(argument, Tensor):
        return vector(name, argument, owners, dtype, grad)
    if isinstance(argument, EarlierAt):
        return argument
    return argument if type(argument) is float else plain_argument(name, argument)


def plain_argument(name: str, argument: object) -> float:
    """Return a number among the arguments and windows of a term; it may be infinite."""
    number = plain_float(argument)
    if number is None:
        raise TypeError(
            f"{name} is {type(argument).__name__}; it must be a number, a tensor (N,) or with one "
            "element, or an earlier term of the call; as an argument also partner(tensor), "
            "table(tensor, classes, classes) or between(embeddings, embeddings)"
        )
    if number != number:
        raise ValueError(f"{name} is NaN; it must be a number")
    return number


def vector(name: str, values: Tensor, length: int, dtype: torch.dtype, grad: bool) -> Tensor:
    check_real(name, values)
    if values.dim() and values.shape != (length,):
        if values.numel() != 1:
            shape = tuple(values.shape)
            raise ValueError(
                f"{name} has shape {shape}; it must be ({length},) or have one element"
            )
        values = values.reshape(())
    return (values if grad else values.detach()).to(dtype).expand(length)


def _table(name: str, given: Table, owners: int, partners: int, dtype: torch.dtype) -> Table:
    for side, classes, length in (
        ("owners", given.owners, owners),
        ("partners", given.partners, partners),
    ):
        if classes.shape != (length,):
            raise ValueError(
                f"{name} has {side} of shape {tuple(classes.shape)}; they must be int64 ({length},)"
            )
    return Table(given.values.detach().to(dtype), given.owners, given.partners)


def _between(
    name: str, given: Between, owners: int, partners: int, dtype: torch.dtype, grad: bool
) -> Between:
    for side, rows, length in (
        ("owners", given.owners, owners),
        ("partners", given.partners, partners),
    ):
        if rows.shape[0] != length:
            raise ValueError(
                f"{name} has {side} of shape {tuple(rows.shape)}; they must be ({length}, E)"
            )
    grad = given.grad and grad
    of_owners, of_partners = [
        (z if grad else z.detach()).to(dtype) for z in (given.owners, given.partners)
    ]
    return Between(of_owners, of_partners, grad)
