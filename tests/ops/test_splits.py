"""Into how many parts the columns of a sweep are cut, where rows are few for a GPU."""

import itertools

import pytest

from pairops.ops.bindings.devices import blocks_of_a_processor, splits
from support.waves import SHAPES, fill, makespan

MIB = 1 << 20


@pytest.mark.parametrize("processors", [7, 12])
def test_no_other_number_of_parts_is_done_earlier(processors: int) -> None:
    """By a queue of blocks, where a block takes the time of its tiles and of two more."""
    for blocks, tiles in itertools.product((1, 3, 6, 10, 31), (1, 5, 40)):
        chosen = splits(blocks, tiles, processors, 1)
        most = max(1, min(tiles, 8 * processors // blocks))
        times = [makespan(blocks, tiles, k, processors, 2) for k in range(1, most + 1)]
        # Parts differ by a tile, of which the queue makes something and the formula nothing.
        assert times[chosen - 1] <= 1.05 * min(times), (blocks, tiles, chosen, min(times))
        waves = -(-blocks * chosen // processors)
        assert all(
            -(-blocks * k // processors) * (-(-tiles // k) + 2) > waves * (-(-tiles // chosen) + 2)
            for k in range(1, chosen)
        ), "a smaller number, whose results take less, is as good"


@pytest.mark.parametrize("d", SHAPES)
@pytest.mark.parametrize("n", [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536])
def test_waves_are_full(d: int, n: int) -> None:
    blocks, tiles = (-(-n // k) for k in SHAPES[d])
    at_a_time = 132 * blocks_of_a_processor(SHAPES[d].rows // 16)
    parts = splits(blocks, tiles, at_a_time, 4 * n * d)
    assert fill(blocks, tiles, parts, at_a_time) > 0.95
    assert blocks * parts <= at_a_time or parts == 1, "one wave is enough"


def test_limits() -> None:
    assert splits(1, 10_000, 132, MIB) == 32, "no more than 32 MiB of results"
    assert splits(1, 10_000, 132, 64 * MIB) == 1
    assert splits(1, 3, 132, 1) == 3, "a part has a tile"
    assert splits(0, 0, 132, 0) == splits(5, 0, 132, 0) == 1
    assert splits(0, 5, 132, 0) == 1
    assert splits(100_000, 100_000, 132, 1) == 1
    assert splits(1, 1 << 24, 132, 1) == 132
