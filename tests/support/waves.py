"""Prints how full the waves of a sweep are, by the number of parts that the columns are cut into.

PYTHONPATH=tests python -m support.waves

One set, 16 bits, `backward` of the engine `cuda` on a GPU of 132 processors: the share of tiles'
time in which a block runs, if all tiles take equal time. Arithmetic: nothing was measured.
"""

import heapq
from typing import NamedTuple

from pairops.ops.bindings.devices import blocks_of_a_processor, splits

PROCESSORS = 132
SIZES = [512, 1024, 2048, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768, 65_536]


class Shape(NamedTuple):
    """Rows of a block and columns of a tile, as csrc/cuda/params/shape_table.h has them."""

    rows: int
    columns: int


SHAPES = {128: Shape(128, 64), 256: Shape(64, 32)}  # by D


def two_each(blocks: int, tiles: int, processors: int, bytes_each: int) -> int:
    """The parts with which every processor has two blocks, whatever is left for a last wave."""
    return max(1, min(-(-2 * processors // blocks), tiles, (32 << 20) // bytes_each))


def makespan(blocks: int, tiles: int, parts: int, at_a_time: int, beside: int = 0) -> int:
    """Run the blocks one after another, each where one has ended, as a GPU does."""
    free = [0] * at_a_time
    for part in range(parts):
        width = tiles * (part + 1) // parts - tiles * part // parts
        for _ in range(blocks):
            heapq.heapreplace(free, free[0] + width + beside)
    return max(free)


def fill(blocks: int, tiles: int, parts: int, at_a_time: int) -> float:
    return blocks * tiles / (at_a_time * makespan(blocks, tiles, parts, at_a_time))


def table() -> str:
    lines = [
        "| N | D | blocks | parts, two blocks a processor | fill | parts, as chosen | fill |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for d, shape in SHAPES.items():
        at_a_time = PROCESSORS * blocks_of_a_processor(shape.rows // 16)
        for n in SIZES:
            blocks, tiles = -(-n // shape.rows), -(-n // shape.columns)
            cells = [f"{n:,}", str(d), str(blocks)]
            for parts in (
                two_each(blocks, tiles, PROCESSORS, 4 * n * d),
                splits(blocks, tiles, at_a_time, 4 * n * d),
            ):
                cells += [str(parts), f"{fill(blocks, tiles, parts, at_a_time):.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
