"""An allocation that torch cannot make on a CPU is a MemoryError, no RuntimeError like others."""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What torch says of its own allocations, on any system, and of those of the standard library.
_REFUSALS = ("allocate memory", "not enough memory", "bad_alloc", "bad allocation")


def refused(error: Exception) -> Exception:
    """A MemoryError in place of torch's error; any other is itself, as torch.OutOfMemoryError, what
    users of GPUs catch, is."""
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
    found.__dict__.update(error.__dict__)  # ranks may know of it
    return found


def if_refused(error: Exception) -> None:
    """Raise the MemoryError; for code that runs so often that a decorator would cost too much."""
    found = refused(error)
    if found is not error:
        raise found from error


def refusing(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, which raises MemoryError where memory is refused."""

    @functools.wraps(function)
    def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
        try:
            return function(*args, **keywords)
        except RuntimeError as error:
            if_refused(error)
            raise

    return called
