"""Records that Triton takes as compile-time arguments."""

import functools
from typing import Any

import triton.language as tl

from .kernels.accumulators import INTERPRETED


class _Static:
    """A compile-time record whose fields are marked as constants for Triton."""

    def __init__(self, record: Any) -> None:
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return tl.constexpr(getattr(self._record, name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._record == other._record

    def __hash__(self) -> int:
        return hash(self._record)

    def __repr__(self) -> str:
        return repr(self._record)


@functools.cache
def static(record: Any) -> Any:
    return record if INTERPRETED else _Static(record)
