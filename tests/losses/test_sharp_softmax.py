"""Softmax losses that are nearly 0, or whose similarities have a large common part, keep their
digits: the yardstick is float32 `torch.nn.functional.cross_entropy` on the same inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pairops
from support.on_cpu import device as device

N, D = 64, 32
TEMPERATURES = (0.2, 0.07, 0.02, 0.01, 0.005)
NOISE = {"fresh": 3.0, "half-trained": 0.3, "nearly solved": 0.03}
COMMON = 2**10, 2**20, 2**24

Loss = Callable[[Tensor, Tensor, float, str], Tensor]
TWINS = torch.arange(N).repeat(2)  # one positive for every row of both sets


def against(y: Tensor) -> dict[str, Any]:
    return {"ref_emb": y, "ref_labels": torch.arange(len(y)), "exclude_self": False}


# Each with one positive for every anchor, y_i for x_i.
OURS: dict[str, Loss] = {
    "info_nce": lambda x, y, t, d: pairops.info_nce_loss(x, y, temperature=t, distance=d),
    "one-way": lambda x, y, t, d: pairops.info_nce_loss(
        x, y, temperature=t, symmetric=False, distance=d
    ),
    "quality": lambda x, y, t, d: pairops.quality_weighted_info_nce_loss(
        x, y, torch.zeros(len(x)), temperature=t, distance=d
    ),
    "supcon": lambda x, y, t, d: pairops.supcon_loss(
        x, torch.arange(len(x)), temperature=t, distance=d, **against(y)
    ),
    "nt_xent": lambda x, y, t, d: pairops.nt_xent_loss(
        x, torch.arange(len(x)), temperature=t, distance=d, **against(y)
    ),
    "nca": lambda x, y, t, d: pairops.nca_loss(
        x, torch.arange(len(x)), scale=1 / t, distance=d, **against(y)
    ),
    "proxy_nca": lambda x, y, t, d: pairops.proxy_nca_loss(
        x, torch.arange(len(x)), y, scale=1 / t, distance=d
    ),
    "multi_positive": lambda x, y, t, d: pairops.multi_positive_loss(
        x, y[:, None], temperature=t, distance=d
    ),
    "n_pair": lambda x, y, t, d: pairops.n_pair_loss(
        torch.cat([x, y]) if d == "dot" else F.normalize(torch.cat([x, y])) / t**0.5,
        TWINS,
        distance="dot",
    ),
}


def plain(name: str, x: Tensor, y: Tensor, temperature: float, distance: str) -> Tensor:
    """By cross_entropy, in the dtype of x."""
    if distance == "cosine":
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    logits, own = x @ y.T / temperature, torch.arange(len(x))
    there = F.cross_entropy(logits, own)
    return (there + F.cross_entropy(logits.T, own)) / 2 if name == "info_nce" else there


def measured(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Any, Any]:
    leaves = [z.detach().clone().requires_grad_() for z in (x, y)]
    value = run(*leaves)
    return value.detach().double(), torch.cat(torch.autograd.grad(value, leaves)).double()


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


def views(noise: float) -> tuple[Tensor, Tensor]:
    """Two views of N items, every second of them like the one before."""
    y = torch.randn(N, D)
    y[1::2] = y[::2] + 0.6 * torch.randn(N // 2, D)
    y = F.normalize(y, dim=1)
    return F.normalize(y + noise * torch.randn(N, D) / D**0.5, dim=1), y


@pytest.mark.parametrize("engine", ["native", "blockwise", "dense"])
@pytest.mark.parametrize("name", OURS)
def test_small_losses(name: str, engine: str) -> None:
    with pairops.use(engine):
        for noise in NOISE.values():
            x, y = views(noise)
            for temperature in TEMPERATURES:
                check(name, x, y, temperature, "cosine")


@pytest.mark.parametrize("engine", ["native", "blockwise", "dense"])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("common", COMMON)
def test_a_common_part_of_similarities(name: str, engine: str, common: int) -> None:
    """All numbers are whole and exact in float32, so that only the loss itself can round."""
    x, y = torch.randint(0, 3, (N, 6)).float(), -torch.randint(0, 3, (N, 6)).float()
    x, y = (torch.cat([z, torch.full((N, 1), common**0.5)], 1) for z in (x, y))
    with pairops.use(engine):
        check(name, x, y, 1.0, "dot")
