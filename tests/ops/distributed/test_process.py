"""What processes of a group cost and how they end: bytes, memory, a rank that dies."""

import re
import time

import pytest

from support import gloo_ranks
from support.exhaustive import exhaustive
from support.rank_problems import GATHERED, RING, D, Problem

pytestmark = pytest.mark.xdist_group("ranks")

HEADER = 5 * 8  # before every exchange; both of its numbers are there, wanted or not
NUMBER, INDEX = 8, 8  # bytes of a float64, and of a key or a column's index


def passed(blocks: int, rows: int, *, known: int, travelling: int) -> int:
    """docs/distributed.md: what a rank sends in one ring, of `rows` rows each.

    known: integers that tell where a row belongs.  travelling: numbers of its statistics.
    """
    return blocks * rows * (D * NUMBER + known * INDEX + travelling * NUMBER)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_bytes_that_a_step_sends_are_those_of_the_docs(ranks: gloo_ranks.Ranks, size: int) -> None:
    rows, others = 24 // size, size - 1
    sizes = [rows] * size
    keys = others * rows * INDEX

    # Forward: far; near and neg; pos. Backward: neg and pos at once, each with window, R and dR.
    ms = 3 * passed(others, rows, known=1, travelling=0)
    ms += passed(others, rows, known=1, travelling=6)
    problem = Problem("ms_loss", {})
    for got in ranks.run(size, "support.rank_functions:sent", problem.shared(sizes)):
        assert got["p2p"] == ms
        # What they were given, each ring, and the mean and its gradient, which headers carry.
        assert got["all_gather"] == others * (1 + 3 + 1 + 2) * HEADER + keys
        assert got["all_reduce"] == 0

    # References lie on their own rank. y past x: forward, and backward with the reference, R and dR
    # of both of y's terms. x past y: with those of x's.
    clip = passed(others, rows, known=1, travelling=0) + passed(others, rows, known=1, travelling=6)
    clip += passed(others, rows, known=2, travelling=0)
    clip += passed(others, rows, known=2, travelling=6)
    problem = Problem("info_nce_loss", {})
    for got in ranks.run(size, "support.rank_functions:sent", problem.shared(sizes)):
        assert got["p2p"] == clip
        assert got["all_gather"] == others * (1 + 2 + 2 + 2) * HEADER
        assert got["all_reduce"] == 0

    # Of a distance nothing travels but its embeddings: both terms at once, back with R and dR.
    hinges = passed(others, rows, known=1, travelling=0) + passed(
        others, rows, known=1, travelling=4
    )
    for distance in ("dot", "l2", "snr"):
        problem = Problem("contrastive_loss", {"distance": distance, "neg_margin": 0.4})
        for got in ranks.run(size, "support.rank_functions:sent", problem.shared(sizes)):
            assert got["p2p"] == hinges, distance

    # Gathered, the embeddings and keys are sent once for all, and then only what is of statistics.
    problem = Problem("ms_loss", {})
    for got in ranks.run(
        size, "support.rank_functions:sent", problem.shared(sizes, gathered=GATHERED)
    ):
        once = others * rows * (D * NUMBER + INDEX)
        weighed = others * rows * 6 * NUMBER
        assert got["p2p"] == 0
        assert got["all_gather"] == others * (1 + 1 + 1 + 2) * HEADER + keys + once + weighed


@pytest.mark.slow
@exhaustive
def test_memory_does_not_grow_with_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of glibc: what takes 256 KiB or more, as a block does, has pages of its own.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 18))
    rows, d = 256, 12288
    given = {"loss": "ms_loss", "rows": rows, "d": d, "gathered": RING}
    grown, held = {}, {}
    fresh = gloo_ranks.Ranks(method="spawn")
    for size in (2, 4):
        found = fresh.run(size, "support.rank_functions:peak", [given] * size, wait=300)
        of_both = zip(*found, strict=True)
        grown[size], held[size] = (max(values) / (4 * rows * d) for values in of_both)
    fresh.stop()
    assert held[2] > 4, f"{held}: less than two blocks, a gradient and a block's part of it"
    assert abs(held[4] - held[2]) <= 0.05 * held[2], held
    # What is resident depends on malloc too, and an engine's workspace is not torch's.
    assert all(grown[size] <= held[size] + 1.5 for size in held), (grown, held)


def test_a_rank_that_dies_ends_the_others() -> None:
    ranks = gloo_ranks.Ranks(3, timeout=20)
    try:
        begin = time.monotonic()
        given = Problem("ms_loss", {}).shared([8, 8, 8], dies=1)
        for pipe, one in zip(ranks.pipes, given, strict=True):
            pipe.send((3, "support.rank_functions:leave", one))
        for rank in (0, 2):
            assert ranks.pipes[rank].poll(30), f"rank {rank} still waits"
            kind, message = ranks.pipes[rank].recv()
            assert kind == "RuntimeError", message
            assert re.search(rf"rank {rank} of 3 was in ms_loss, ring [12] \(\w+\), block", message)
        assert time.monotonic() - begin < 30
        ranks.processes[1].join(10)
        assert ranks.processes[1].exitcode == 9
    finally:
        ranks.stop()
    assert not any(process.is_alive() for process in ranks.processes)
