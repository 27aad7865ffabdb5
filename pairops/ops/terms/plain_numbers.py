"""Conversion of numbers, numpy's too, to Python's; numpy itself is not needed."""

import math
import numbers
import operator
from typing import Any

from torch import Tensor


def plain_float(value: object) -> float | None:
    """Return a real number, or the one in an array; None for a bool, a tensor, or anything else.

    An integer beyond the range of a float is infinite.
    """
    if not isinstance(value, (int, float)) and not isinstance(value, Tensor):
        array: Any = value
        if getattr(array, "size", None) == 1 and hasattr(array, "item"):
            value = array.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def plain_int(value: object) -> int | None:
    """Return a whole number; None for a bool, a tensor, or anything else."""
    if isinstance(value, (bool, Tensor)):
        return None
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
