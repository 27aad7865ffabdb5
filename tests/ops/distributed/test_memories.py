"""A CrossBatchMemory on several ranks, each of which remembers its own rows."""

import pytest
import torch

import pairops
from support import gloo_ranks
from support.rank_problems import GATHERED, RING, D, assert_equal, rows

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])
def test_a_memory_is_that_of_one_process(ranks: gloo_ranks.Ranks, gathered: int) -> None:
    x, labels = rows(12)
    batches = [(x + k, labels) for k in range(4)]
    ids = [torch.arange(12) * 3 % 17 + k for k in range(4)]
    one = pairops.CrossBatchMemory(pairops.ms_loss, D, 24, dtype=torch.float64)
    expected = []
    for (x, labels), names in zip(batches, ids, strict=True):
        leaf = x.clone().requires_grad_()
        value = one(leaf, labels, ids=names)
        expected.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    given = [
        {
            "loss": pairops.ms_loss,
            "size": 8,
            "gathered": gathered,
            "batches": [
                {"x": x[r::3], "labels": labels[r::3], "ids": names[r::3]}
                for (x, labels), names in zip(batches, ids, strict=True)
            ],
        }
        for r in range(3)
    ]
    found = ranks.run(3, "support.rank_functions:remembered", given)
    assert not isinstance(found[0], tuple), found[0]
    for k, (value, gradient) in enumerate(expected):
        together = torch.empty_like(gradient)
        for r in range(3):
            assert_equal(f"batch {k}", found[r][k]["value"], value, 1e-12)
            together[r::3] = found[r][k]["x"] / 3
        assert_equal(f"batch {k}", together, gradient, 1e-12)


def test_each_rank_keeps_its_memory_within_a_wrapper(ranks: gloo_ranks.Ranks) -> None:
    """Wrappers make buffers of all ranks alike."""
    batches = [[rows(n) for n in sizes] for sizes in ([8, 5, 6], [7, 9, 4])]
    found = {}
    for wrapper in ("none", "ddp", "fully_shard"):
        given = [{"wrapper": wrapper, "batches": mine} for mine in batches]
        found[wrapper] = ranks.run(2, "support.rank_functions:wrapped", given)
        for (held, _), mine in zip(found[wrapper], batches, strict=True):
            labels = torch.cat([labels for _, labels in mine])
            assert torch.equal(held[: len(labels)], labels), wrapper
            assert (held[len(labels) :] == -100).all()
        assert [got[1] for got in found[wrapper]] == [got[1] for got in found["none"]]
