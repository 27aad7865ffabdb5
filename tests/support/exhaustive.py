"""The mark of tests that `make test-all` runs and `make test` leaves out: one of many alike."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

exhaustive = pytest.mark.exhaustive


def exhaustive_but(params: Iterable[Any], keep: Callable[..., bool]) -> list[Any]:
    """Parameters of a test, marked unless `keep` is true of them, value by value."""
    found = []
    for param in params:
        values = getattr(param, "values", None) or (param if isinstance(param, tuple) else (param,))
        marks = () if keep(*values) else exhaustive
        found.append(pytest.param(*values, id=getattr(param, "id", None), marks=marks))
    return found
