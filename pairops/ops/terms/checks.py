"""Checks of arguments that are no tensors: flags, counts, numbers, names, functions.

Each returns what is computed with. An error names the argument, says what it was and what it must
be. What may be a tensor has `tensor_checks`.
"""

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .plain_numbers import plain_float, plain_int

_LAST = torch.iinfo(torch.int64).max
# The least number whose reciprocal float32 holds, with room for a factor: its least normal one.
LEAST, MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float64).max


def plain_number(name: str, value: object, *, positive: bool = False) -> float:
    """Return a finite number; a tensor is refused, for what the host has to know."""
    plain = plain_float(value)
    if plain is None:
        raise TypeError(f"{name} is {type(value).__name__}; it must be a number")
    return within_limits(name, value, plain, positive)


def within_limits(name: str, value: object, plain: float, positive: bool) -> float:
    """Return a finite number; see `number` of `tensor_checks` for `positive`."""
    if (LEAST if positive else -MOST) <= plain <= MOST:
        return plain
    wanted = "a finite number" + " above 0" * positive
    if positive and 0 < plain < LEAST:
        wanted += f", at least {LEAST:.3g}: of less float32 holds no reciprocal"
    raise ValueError(f"{name} is {shown(value)}; it must be {wanted}")


def count(
    name: str, value: object, least: int = 0, most: int = _LAST, *, optional: bool = False
) -> int:
    """Return a whole number from `least` to `most`. optional: the error says that None may be."""
    whole = plain_int(value)
    if whole is None:
        kind = type(value).__name__
        raise TypeError(f"{name} is {kind}; it must be an int{' or None' * optional}")
    if not least <= whole <= most:
        which = f"at least {least}" if whole < least else f"at most {most}"
        raise ValueError(f"{name} is {shown(whole)}; it must be {which}")
    return whole


def flag(name: str, value: bool | None, *, optional: bool = False) -> None:
    """Refuse a value that is neither True nor False, nor None if it is optional."""
    if value is True or value is False or (optional and value is None):
        return
    kind = type(value).__name__
    raise TypeError(f"{name} is {kind}; it must be a bool{' or None' * optional}")


def one_of(name: str, value: object, known: Collection[str]) -> None:
    """Refuse a value that is none of these names."""
    if type(value) is str and value in known:
        return
    if not isinstance(value, str) or value not in known:
        names = ", ".join(known)
        raise ValueError(f"{name} is {shown(value)}; it must be one of {names}")


def function(name: str, value: object, what: str = "a function") -> None:
    """Refuse a value that cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} is {type(value).__name__}; it must be {what}")


def signature_of(name: str, value: Any) -> inspect.Signature:
    """Return the signature of a function."""
    try:
        return inspect.signature(value)
    except ValueError as error:
        raise TypeError(
            f"{name} is {getattr(value, '__name__', shown(value))}, which does not tell its "
            "arguments; it must be a Python function, such as lambda s: torch.exp(s)"
        ) from error


def shown(value: object) -> str:
    """Describe a value in a message; the text is short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor"
    return type(value).__name__
