"""The extension module as Python sees it; every address is that of contiguous memory.

Without a `stream` memory is the host's and the call returns when it is done; with one, the handle
of a CUDA stream, memory is the current device's and the call returns once the work is enqueued.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict, type_check_only

@type_check_only
class _Features(TypedDict):
    version: str
    cuda: bool
    cuda_toolkit: str | None
    cuda_architectures: str | None  # as CMake writes them: "80-real 90a-real 80-virtual"
    compiler: str
    build_type: str

def version() -> str: ...
def features() -> _Features: ...
def probe_function(
    name: str,
    *,
    dtype: Literal["float32", "float64"],
    args: Sequence[float],
    n: int,
    s: int,  # (n,)
    value: int,  # (n,)
    slopes: int,  # (n, 1 + number of args)
    stream: int | None = None,
) -> None: ...
def probe_gather(
    name: str,
    *,
    dtype: Literal["float32", "float64"],
    n: int,
    split: int,
    contributions: int,  # (n,)
    value: int,  # (1,)
    argument: int,  # (1,) int32
    shares: int,  # (n,)
    stream: int | None = None,
) -> None: ...
