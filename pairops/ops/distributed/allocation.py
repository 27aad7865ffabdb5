"""Refused allocations: torch's RuntimeError on a CPU becomes a MemoryError."""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Messages of torch's allocator, on any system, and of the standard library's.
_REFUSALS = ("allocate memory", "not enough memory", "bad_alloc", "bad allocation")


def refused(error: Exception) -> Exception:
    """Return a MemoryError for a refused allocation, else the error itself, such as
    torch.OutOfMemoryError, which users of GPUs catch."""
    said = str(error)
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return error
    if not any(refusal in said for refusal in _REFUSALS):
        return error
    asked = re.search(r"(\d+) bytes", said)
    what = f"{asked[1]} bytes ({int(asked[1]) / 2**20:.1f} MiB)" if asked else "memory"
    found = MemoryError(
        f"{what} cannot be had; pairops.estimate_memory tells what a loss needs at most, and "
        "pairops.cached_step is for a batch whose graph is too large"
    )
    found.__dict__.update(error.__dict__)  # which marks an error that ranks know of
    return found


def if_refused(error: Exception) -> None:
    """Raise the MemoryError; for code that runs so often that a decorator would cost too much."""
    found = refused(error)
    if found is not error:
        raise found from error


def refusing(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate `function` so that it raises MemoryError where memory is refused."""

    @functools.wraps(function)
    def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
        try:
            return function(*args, **keywords)
        except RuntimeError as error:
            if_refused(error)
            raise

    return called
