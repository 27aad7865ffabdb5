"""Softmax losses that are nearly 0, or whose similarities have a large common part, keep their
digits: the yardstick is float32 `torch.nn.functional.cross_entropy` on the same inputs."""

import pytest
import torch
from torch import Tensor

import pairops
from support.on_cpu import device as device
from support.sharp_softmax import NOISE, OURS, TEMPERATURES, N, measured, plain, views

COMMON = 2**10, 2**20, 2**24


def orders(x: Tensor) -> list[Tensor]:
    """Of features: one product that is rounded luckily is no yardstick."""
    stored = torch.arange(x.shape[1])
    return [stored, stored.flip(0), stored.roll(len(stored) // 2), stored.roll(3), stored.roll(-5)]


def check(name: str, x: Tensor, y: Tensor, temperature: float, distance: str) -> None:
    def by_hand(a: Tensor, b: Tensor) -> Tensor:
        return plain(name, a, b, temperature, distance)

    truth = measured(by_hand, x.double(), y.double())
    theirs = [measured(lambda a, b, o=o: by_hand(a[:, o], b[:, o]), x, y) for o in orders(x)]
    ours = measured(lambda a, b: OURS[name](a, b, temperature, distance), x, y)
    for k, (right, mine) in enumerate(zip(truth, ours, strict=True)):
        by_torch = max(float((found[k] - right).abs().max()) for found in theirs)
        allowed = 2 * by_torch + 4 * 2**-23 * float(right.abs().max())
        assert float((mine - right).abs().max()) <= allowed, ("value", "gradient")[k]


@pytest.mark.parametrize("engine", ["cpu", "blockwise", "dense"])
@pytest.mark.parametrize("name", OURS)
def test_small_losses(name: str, engine: str) -> None:
    with pairops.engine(engine):
        for noise in NOISE.values():
            x, y = views(noise)
            for temperature in TEMPERATURES:
                check(name, x, y, temperature, "cosine")


@pytest.mark.parametrize("engine", ["cpu", "blockwise", "dense"])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("common", COMMON)
def test_a_common_part_of_similarities(name: str, engine: str, common: int) -> None:
    """All numbers are whole and exact in float32, so that only the loss itself can round."""
    x, y = torch.randint(0, 3, (N, 6)).float(), -torch.randint(0, 3, (N, 6)).float()
    x, y = (torch.cat([z, torch.full((N, 1), common**0.5)], 1) for z in (x, y))
    with pairops.engine(engine):
        check(name, x, y, 1.0, "dot")
