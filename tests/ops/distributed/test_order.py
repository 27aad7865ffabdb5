"""Ranks that are at different places, or of which one alone fails: an error on each, and soon."""

import time
from typing import Any

import pytest
from torch import Tensor

import pairops
from support.gloo_ranks import Ranks
from support.rank_problems import GATHERED, RING, rows
from support.rank_steps import SIZE

pytestmark = pytest.mark.xdist_group("ranks")

BOTH = pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])

MS, SUPCON = "ms(x, labels, group=group)", "supcon(x, labels, group=group)"
NT_XENT = "pairops.nt_xent_loss(x, labels, group=group)"
OWN = "pairops.pair_loss(x, labels, pairops.total('neg', 1.0, 0.0), combine={}, group=group)"
BY_HAND = "pairops.row_stats(pairops.Pairs.of(x, labels, group=group), pairops.lse('neg', 1.0, {}))"


def taken(ranks: Ranks, steps: list[list[str]], gathered: int = RING) -> list[list[Any]]:
    """What the steps of each rank gave. After them all ranks take one more together, which must be
    right: nothing of what went wrong is left over."""
    x, labels = rows(12)
    shares = [z.split(12 // len(steps)) for z in (x, labels)]
    given = [
        {"x": shares[0][k], "labels": shares[1][k], "steps": [*mine, MS], "gathered": gathered}
        for k, mine in enumerate(steps)
    ]
    begin = time.monotonic()
    found = ranks.run(len(steps), "support.rank_steps:take", given)
    assert time.monotonic() - begin < 10, "they waited for one another"
    one = float(pairops.ms_loss(x, labels))
    for got in found:
        assert got[-1] == pytest.approx(one, rel=1e-12), found
    return [got[:-1] for got in found]


def only(found: list[list[Any]], kind: str) -> str:
    """The text of the error that the last step of every rank ended in, which is the same."""
    last = [got[-1] for got in found]
    assert all(isinstance(got, tuple) and got[0] == kind for got in last), found
    assert all(got == last[0] for got in last), found
    return str(last[0][1])


@BOTH
@pytest.mark.parametrize(
    ("steps", "others", "places"),
    [
        # Backward passes of two calls in another order: of the same loss, and of two.
        ([MS, MS, "back(v[0])"], [MS, MS, "back(v[1])"], ("backward pass of call", ", ms_loss")),
        (
            [MS, SUPCON, "back(v[0])"],
            [MS, SUPCON, "back(v[1])"],
            ("backward pass of call", ", supcon_loss"),
        ),
        # One that a rank leaves out, and one that it runs twice.
        ([MS, "back(v[0])"], [MS, SUPCON], ("backward pass of call", "at the beginning of call")),
        (
            [MS, "back(v[0], times=2)"],
            [MS, "back(v[0]) or supcon(x, labels, group=group)"],
            ("backward pass of call", "at the beginning of call"),
        ),
        # One that can be differentiated again, on one rank alone.
        (
            [SUPCON, "slope(v[0], x)"],
            [SUPCON, "back(v[0])"],
            ("all rows, differentiably", "ring 2 (backward)"),
        ),
        # Of the losses of every row, of sums, of averages over pairs.
        (
            [MS[:-1] + ", reduction='none')", SUPCON, "back(v[0])"],
            [MS[:-1] + ", reduction='none')", SUPCON, "back(v[1])"],
            ("ring 2 (backward)", "a sum of"),
        ),
        (
            [SUPCON[:-1] + ", reduction='sum')", SUPCON, "back(v[0])"],
            [SUPCON[:-1] + ", reduction='sum')", SUPCON, "back(v[1])"],
            ("backward pass of call", "backward pass of call"),
        ),
        # Calls by hand in another order.
        (
            [
                "pairops.Pairs.of(x, labels, group=group)",
                "pairops.row_stats(v[0], pairops.lse('neg', 1.0, 0.0)) and None",
                "back(pairops.row_stats(v[0], pairops.total('pos', 1.0, 0.0))[0])",
            ],
            [
                "pairops.Pairs.of(x, labels, group=group)",
                "pairops.row_stats(v[0], pairops.lse('neg', 1.0, 0.0)) and None",
                "ms(x, labels, group=group)",
            ],
            ("Pairs.of", "ms_loss"),
        ),
    ],
)
def test_ranks_at_different_places_hear_who_is_where(
    ranks: Ranks, steps: list[str], others: list[str], places: tuple[str, str], gathered: int
) -> None:
    text = only(taken(ranks, [steps, others], gathered), "RuntimeError")
    assert text.startswith("the ranks of the group are at different places: rank 0 is in the "), (
        text
    )
    first, second = text.split("; rank 1 is ")
    assert places[0] in first, text
    assert places[1] in second, text
    assert "in the same order on all ranks" in second


@pytest.mark.parametrize(
    ("step", "other", "message"),
    [
        (MS, "seen(ms, x, labels, group=group)", "grad mode: rank 0 has True; rank 1 has False"),
        (
            "under(pairops.engine('dense'), ms, x, labels, group=group)",
            MS,
            "engine: rank 0 has dense; rank 1 has blockwise",
        ),
        (
            MS,
            "under(pairops.engine('auto'), ms, x, labels, group=group)",
            "engine: rank 0 has blockwise; rank 1 has auto",
        ),
        (
            MS,
            "under(half(), ms, x, labels, group=group)",
            "float32 matmul precision: rank 0 has highest; rank 1 has medium",
        ),
        (
            BY_HAND.format(0.0),
            "under(pairops.engine('dense'), pairops.Pairs.of, x, labels, group=group)",
            "engine: rank 0 has blockwise; rank 1 has dense",
        ),
        (
            "pairops.Pairs.of(x, labels, ref_emb=x, ref_labels=labels, group=group)",
            "pairops.Pairs.of(x, labels, ref_emb=x, ref_labels=labels, group=group, ids=labels, "
            "ref_ids=labels)",
            "ids: rank 0 has nothing; rank 1 has torch.int64",
        ),
    ],
)
def test_what_decides_the_exchanges_is_agreed_on(
    ranks: Ranks, step: str, other: str, message: str
) -> None:
    text = only(taken(ranks, [[step], [other]]), "ValueError")
    assert text.startswith(f"the ranks of the group disagree about {message}"), text


def test_the_size_below_which_rows_are_gathered_is_agreed_on(ranks: Ranks) -> None:
    x, labels = rows(12)
    given = [
        {"x": x[:6], "labels": labels[:6], "steps": [MS], "gathered": way}
        for way in (RING, GATHERED)
    ]
    text = only(ranks.run(2, "support.rank_steps:take", given), "ValueError")
    assert "embeddings below which all rows are gathered: rank 0 has 0; rank 1 has 1" in text


@BOTH
@pytest.mark.parametrize(
    ("step", "failing", "error"),
    [
        # After the ranks agreed, in a formula of one's own.
        *[
            (OWN.format(f"second_fails, reduction={how!r}"), None, "ArithmeticError: of one")
            for how in ("mean", "none")
        ],
        # By hand, before they agree and after.
        (
            "pairops.Pairs.of(x, labels, group=group)",
            "pairops.Pairs.of(x, labels[:2], group=group)",
            "ValueError: labels has shape (2,)",
        ),
        (
            f"back({BY_HAND.format(0.0)}[0])",
            BY_HAND.format("x[:2, 0]"),
            "argument 1 of affine has shape (2,)",
        ),
        # Before a ring, and in a block of it: the rest of it must be handed on.
        *[
            (
                MS,
                f"under(failing_blocks('{what}'), ms, x, labels, group=group)",
                f"MemoryError: {SIZE[what]} bytes",
            )
            for what in ("pack", "forward")
        ],
        # In the loss of a memory, which has exchanged ids before.
        (
            "pairops.CrossBatchMemory(second_lost, 6, 8, group=group)(x, labels, ids=labels)",
            None,
            "ArithmeticError: of one",
        ),
    ],
)
def test_a_rank_that_fails_tells_the_others(
    ranks: Ranks, step: str, failing: str | None, error: str, gathered: int
) -> None:
    steps = [[step], [failing or step], [step]]
    first, second, third = (got[0] for got in taken(ranks, steps, gathered))
    assert isinstance(second, tuple), second
    said = f"{second[0]}: {second[1]}"
    assert error in said
    for other in (first, third):
        assert other == ("RuntimeError", f"not every rank could take part: rank 1 has {said}")


@BOTH
def test_a_rank_that_fails_backward_lets_the_others_finish(ranks: Ranks, gathered: int) -> None:
    """What it owes in that exchange it hands on. The others need not wait for it, nor it for them,
    and where they are is heard of in the next one."""
    backward = ["back(v[0])", "x.grad.norm()"]
    failing = ["under(failing_blocks('backward'), back, v[0])", "None"]
    found = taken(ranks, [[SUPCON, *backward], [SUPCON, *failing], [SUPCON, *backward]], gathered)
    kind, said = found[1][1]
    assert kind == "MemoryError"
    assert said.startswith(f"{SIZE['backward']} bytes")
    x, labels = rows(12)
    x.requires_grad_()
    pairops.supcon_loss(x, labels).backward()
    assert isinstance(x.grad, Tensor)
    for rank in (0, 2):
        norm = float(3 * x.grad[4 * rank : 4 * rank + 4].norm())
        assert found[rank][2] == pytest.approx(norm, rel=1e-12)
    # Of nt_xent_loss there is another ring, in which the one who failed is not.
    steps = [[NT_XENT, "back(v[0])"], [NT_XENT, failing[0], SUPCON], [NT_XENT, "back(v[0])"]]
    found = taken(ranks, steps, gathered)
    for got in (found[0][1], found[1][2], found[2][1]):
        assert got == found[0][1]
        assert "ranks 0, 2 are in the backward pass of call" in got[1]
        assert "rank 1 is at the beginning of call" in got[1]


def test_a_foreign_collective_ends_with_the_timeout_and_the_name_of_the_call() -> None:
    ranks = Ranks(2, timeout=3)
    try:
        x, labels = rows(12)
        steps = [MS, "dist.all_reduce(torch.ones(9), group=group)"]
        given = [{"x": x[:6], "labels": labels[:6], "steps": [step]} for step in steps]
        found = ranks.run(2, "support.rank_steps:take", given)
        kind, text = found[0][0]
        assert kind == "RuntimeError"
        assert text.startswith("rank 0 of 2 was in ms_loss, the exchange of what the ranks"), text
    finally:
        ranks.stop()
