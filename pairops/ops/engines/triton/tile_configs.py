"""Tile shapes of the Triton sweeps: a table by architecture, dtype and D, read and never searched.

The numbers are **not measured on a GPU yet.** Each row is a large tile whose kernels of `ms_loss`
compile, ahead of time by Triton 3.7.1 and 3.9.0, without a stack and within the shared memory of
its architecture (`tests/ops/engines/triton/test_tile_configs.py` holds them to it). `python -m
bench gpu` times the neighbours of each row; its findings belong here, with date and GPU.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """Number formats in which embeddings and weights are multiplied; sums are float32.

    There is no bfloat16: brought to [−1, 1) by a power of two per row, a bfloat16 is a float16 (but
    for what is below 2^−24 of its row), which the same instructions multiply at the same speed; and
    a weight then has 11 bits and not 8, where 8 would add half to the error of a bfloat16 gradient,
    and 11 as much to that of a float16 gradient: hence `fine`. Where weights cancel 11 are too few
    for bfloat16 as well: see `weight_parts`.
    """

    stored: torch.dtype  # dtype of sorted copies
    unit: bool  # their rows are brought to [−1, 1)
    fit: bool  # weights are float16, in units of a power of two per row
    fine: bool = False  # they are two float16 each
    split: bool = False  # embeddings, too, are multiplied as two float16 each


def precision(dtype: torch.dtype, level: str) -> Precision:
    """Return the precision for a dtype; for float32 at this level of
    `torch.get_float32_matmul_precision()`."""
    if dtype == torch.bfloat16:
        return Precision(torch.float16, unit=True, fit=True)
    if dtype == torch.float16:
        return Precision(torch.float16, unit=True, fit=True, fine=True)
    if level == "medium":
        return Precision(torch.float16, unit=True, fit=True)
    if level == "high":
        return Precision(torch.float32, unit=True, fit=True, fine=True, split=True)
    return Precision(torch.float32, unit=False, fit=False)


@dataclass(frozen=True)
class Configuration:
    """Tile shape and precision of a sweep, a compile-time argument."""

    rows: int  # of a tile; a multiple of cols
    cols: int
    depth: int  # dimensions multiplied at a time
    blocks: int  # of `depth` dimensions; embeddings are padded with zeros to fill them
    accumulators: int  # blocks of the gradient that one program sums
    resident: bool  # all blocks of a tile's embeddings stay in registers
    warps: int
    stages: int
    pieces: int  # in which the columns of a partial tile are visited, one after the other
    precision: "Precision"

    @property
    def fit(self) -> bool:
        return self.precision.fit

    @property
    def coarse(self) -> bool:
        """Whether a weight has 11 bits."""
        return self.precision.fit and not self.precision.fine

    @property
    def split(self) -> bool:
        return self.precision.split

    @property
    def with_fine_weights(self) -> "Configuration":
        return replace(self, precision=replace(self.precision, fine=True))

    @property
    def parts(self) -> int:
        """The number of programs that share the gradient of a block of rows."""
        return self.blocks // self.accumulators

    @property
    def piece(self) -> int:
        return self.cols // self.pieces

    @property
    def padded(self) -> int:
        return self.blocks * self.depth

    @property
    def options(self) -> dict[str, Any]:
        """Return how Triton compiles the kernels of a call that are no sweeps.

        It fuses a product into the sum after it where nothing stands between, which differs from
        pass to pass and from tile to tile. A contribution f that is rounded in one of them alone
        differs by ε|f|: at sharp temperatures most of a float32 gradient's error, and nothing
        beside the rounding of 16 bits.
        """
        fused = self.precision.stored != torch.float32
        return {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": fused}

    @property
    def sweep_options(self) -> dict[str, Any]:
        return {**self.options, "num_warps": self.warps, "num_stages": self.stages}

    def tiles(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the number of blocks of `rows` rows, and of tiles of `cols` columns."""
        return (rows + self.rows - 1) // self.rows, (cols + self.cols - 1) // self.cols


@dataclass(frozen=True)
class Row:
    """One row of the table, for D up to `most`."""

    most: float
    rows: int
    cols: int
    depth: int
    accumulators: int  # at most
    resident: bool
    warps: int
    stages: int
    pieces: int = 1


# By architecture (80: also newer ones that are not named) and bytes of an embedding's number.
#
# A warp has 16 rows: of 64 rows in 8 warps half of them would compute what the others do, where
# all of a tile's embeddings are resident. Partial tiles need registers for masks, and for terms of
# positives: in pieces of 16 columns they leave as many columns to full tiles as these can hold.
TABLE: dict[tuple[int, int], tuple[Row, ...]] = {
    (80, 2): (
        Row(128, 64, 64, 64, 2, True, 4, 2, pieces=4),
        Row(256, 64, 64, 128, 2, True, 8, 2, pieces=4),
        Row(math.inf, 64, 32, 128, 2, False, 8, 2),
    ),
    (90, 2): (
        Row(128, 64, 64, 128, 1, True, 4, 2, pieces=4),
        Row(256, 64, 64, 128, 2, True, 4, 2, pieces=4),
        # In blocks of 64 dimensions ms_loss has no registers for 64 columns.
        Row(math.inf, 64, 64, 32, 8, False, 4, 2, pieces=4),
    ),
    (100, 2): (
        Row(128, 128, 64, 128, 1, True, 8, 2, pieces=4),
        Row(256, 64, 64, 128, 2, True, 8, 2, pieces=2),
        Row(math.inf, 64, 64, 64, 4, False, 8, 2, pieces=4),
    ),
    (80, 4): (
        Row(64, 64, 32, 32, 2, True, 8, 2, pieces=2),
        Row(math.inf, 64, 16, 32, 2, False, 8, 2),
    ),
}
# Where positives are a list, or weights are in two parts: either leaves fewer registers.
NARROW: dict[int, tuple[Row, ...]] = {
    80: (
        Row(64, 128, 32, 64, 1, True, 8, 2),
        Row(128, 64, 16, 128, 1, True, 8, 2),
        Row(math.inf, 64, 16, 128, 2, False, 8, 2),
    ),
    90: (
        Row(128, 64, 64, 128, 1, True, 4, 2, pieces=4),
        Row(256, 64, 16, 64, 4, False, 8, 2),
        Row(math.inf, 64, 16, 64, 2, False, 8, 2),
    ),
    100: (
        Row(128, 128, 16, 128, 1, True, 8, 2),
        Row(math.inf, 64, 16, 64, 4, False, 8, 2),
    ),
}
# Triton's interpreter pays for every tile and every operation, not for the numbers in them.
INTERPRETED = Row(math.inf, 64, 64, 128, 3, False, 4, 1)
_INTERPRETED_RESIDENT = 128


def choose(
    capability: tuple[int, int] | None, dtype: torch.dtype, d: int, level: str, narrow: bool = False
) -> Configuration:
    """Return the configuration for a compute capability (None: the interpreter), embeddings (N, d)
    of this dtype and this level of `torch.get_float32_matmul_precision()`.

    narrow: positives are a list, or weights are in two parts though one would do for the dtype. No
    term counts here, since a tile mask must fit every call with the same pairs.
    """
    exact = precision(dtype, level)
    row = INTERPRETED
    if capability is not None:
        row = _row(capability, exact.stored, d, narrow or exact.fine)
    depth = min(row.depth, max(16, 1 << (d - 1).bit_length()))
    blocks = max(1, (d + depth - 1) // depth)
    parts = (blocks + row.accumulators - 1) // row.accumulators
    accumulators = (blocks + parts - 1) // parts
    resident = d <= _INTERPRETED_RESIDENT if capability is None else row.resident
    return Configuration(
        row.rows, row.cols, depth, parts * accumulators, accumulators,
        resident and parts == 1, row.warps, row.stages, row.pieces, exact,
    )  # fmt: skip


def _row(capability: tuple[int, int], dtype: torch.dtype, d: int, narrow: bool) -> Row:
    width, named = dtype.itemsize, capability[0] * 10
    if narrow and width == 2:
        rows = NARROW.get(named, NARROW[80])
    else:
        rows = TABLE.get((named, width), TABLE[80, width])
    return next(row for row in rows if d <= row.most)


def chunks_pay(config: Configuration, d: int, same: bool) -> bool:
    """Return whether `torch.mm` should multiply s in chunks. Derived, **not measured yet**.

    Sweeps of two sets take 6 products, 4 of them s again; chunks take 4. With sweeps at 0.6 and
    `torch.mm` at 0.9 of the tensor cores' rate, and 18 bytes of memory traffic a pair, both take
    equal time at D of about 300. Sliced gradients multiply s once per slice. Triton multiplies
    float32 on the plain cores at less than half of cuBLAS's rate.
    """
    if not (config.fit or d < 32):
        return True
    return config.parts > 1 or (not same and d > 256)
