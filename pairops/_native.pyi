"""The extension module as Python sees it; every address is that of contiguous memory.

Without a `stream` memory is the host's and the call returns when it is done; with one, the handle
of a CUDA stream, memory is the current device's and the call returns once the work is enqueued.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypedDict, type_check_only

@type_check_only
class _Features(TypedDict):
    version: str
    cuda: bool
    cuda_toolkit: str | None
    cuda_architectures: str | None  # as CMake writes them: "80-real 90a-real 80-virtual"
    cuda_sources: str | None  # a digest of the kernels' sources
    compiler: str
    build_type: str

cuda: Any  # csrc/bindings/cuda.cpp, or None: this build has no CUDA kernels

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
def probe_accumulator(
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

_Dtype: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]
# Address, dtype, n, d, scales (n,) float64 or None, permutation (n,) int64, valid (n,)
# bool.
_Embeddings: TypeAlias = tuple[int, _Dtype, int, int, int | None, int, int]
# Name, by column?, where arguments come from (ops/engines/plan.py), which of them pass their
# gradient on, where above and below come from, has bits?, the statistic of an owner without pairs.
_Planned: TypeAlias = tuple[str, bool, list[int], list[int], int, int, bool, float]
_Vector: TypeAlias = tuple[int, int]  # address and stride: 1, or 0 for one number

TILE: int  # rows and columns of a tile of bits

def isas() -> list[str]: ...  # that this machine runs, the best one first
def terms() -> list[str]: ...  # that are compiled

class Plan:
    # The terms of a call without their numbers and vectors; which are swept together, in turn,
    # forward and backward.
    def __init__(
        self,
        terms: list[_Planned],
        sweeps: Sequence[Sequence[int]],
        passes: Sequence[Sequence[int]],
    ) -> None: ...

def forward(
    plan: Plan,
    isa: str,
    x: _Embeddings,
    y: _Embeddings | None,  # None: the same set
    measure: tuple[str, bool] | None,  # a distance, and are its anchors the columns?
    # pos_begin, pos_end, self_index (n,) int64; entries of a list, or None
    relation: tuple[int, int, int, int | None],
    similarities: tuple[int, int] | None,  # tiles, and which of them are known; None: not saved
    numbers: list[float],  # of all terms, in their order
    vectors: list[_Vector],
    statistics: int,  # of rows and then of columns, without a gap; to be written
    arguments: list[int | None],
    bits: int | None,
    bits_stride: int,  # bytes of bits that one term has
    threads: int,
    poison: bool,
) -> None: ...
def backward(
    plan: Plan,
    isa: str,
    x: _Embeddings,
    y: _Embeddings | None,
    measure: tuple[str, bool] | None,
    relation: tuple[int, int, int, int | None],
    similarities: tuple[int, int] | None,
    numbers: list[float],
    vectors: list[_Vector],
    statistics: int,
    arguments: list[int | None],  # of extremes: then nothing is swept
    cotangents: list[_Vector],
    slopes: list[int | None],  # by each vector that is an argument, zeros to add to
    bits: int | None,
    bits_stride: int,
    threads: int,
    poison: bool,
    dx: int | None,  # (n, d) zeros
    dy: int | None,
) -> None: ...
def mean(
    wide: bool,  # float64, else float32
    pieces: list[tuple[str, int, int, float, float]],  # shape, plus, minus or -1, offset, weight
    n: int,
    count: int,  # terms
    statistics: int,  # of all terms, one after the other
    positives: int | None,  # (n,) int64
    slopes: int,  # as statistics, to be written
    mean: int,  # (1,) to be written
) -> None: ...
def sort_by_label(
    isa: str,
    sets: list[tuple[int, str, int, int]],  # address, dtype, n, d of x and, if there is one, y
    labels: list[int | None],  # (n,) int64 of x and of y
    ignored: int | None,
    exclude_self: bool,
    outputs: list[int],
    threads: int,
) -> tuple[bool, bool]: ...  # is every row valid, and has each of x a positive?
def probe_peak(isa: str, rounds: int) -> float: ...
def probe_product(isa: str, d: int, backward: bool, rounds: int) -> float: ...
