"""Area "compiled": torch.compile in one graph, of changing sizes and changing numbers."""

from random import Random
from typing import Any

import torch
from torch._dynamo.testing import CompileCounter

import pairops
from fuzz import losses
from fuzz.formulas import unless_refused
from pairops import losses as every
from support.loss_parameters import LABELLED, ONE_SET

IMPORTS = ["from fuzz.compiled import annealed, compiled, module"]
MODULES = [
    "CircleLoss", "ContrastivePairLoss", "LiftedStructurePairLoss", "MSLoss", "MarginPairLoss",
    "NCALoss", "NPairLoss", "NTXentLoss", "SupConLoss", "TripletLoss",
]  # fmt: skip
ANNEALED = {
    "supcon_loss": "temperature", "nt_xent_loss": "temperature", "ms_loss": "base",
    "triplet_loss": "margin", "circle_loss": "gamma", "contrastive_loss": "neg_margin",
}  # fmt: skip


def draw(random: Random) -> list[str]:
    sizes = [random.randint(8, 20), random.randint(8, 20)]
    way = random.choices(["loss", "module", "annealed"], [4, 3, 2])[0]
    if way == "module":
        return [*IMPORTS, f"module({random.choice(MODULES)!r}, {sizes})"]
    if way == "annealed":
        name = random.choice(list(ANNEALED))
        return [*IMPORTS, f"annealed({name!r}, {ANNEALED[name]!r})"]
    names = [name for name in LABELLED if name not in ONE_SET]
    name = random.choice([n for n in every.LOSSES if n in names])
    return [*IMPORTS, f"compiled({name!r}, {losses.settings(random, name)}, {sizes})"]


def _batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 5), torch.arange(n) // 3


def _same(loss: Any, sizes: list[int]) -> None:
    torch._dynamo.reset()
    faster = torch.compile(loss, fullgraph=True, dynamic=True, backend="eager")
    for n in sizes:
        x, labels = _batch(n)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        values = [loss(leaves[0], labels), faster(leaves[1], labels)]
        for value in values:
            value.sum().backward()
        torch.testing.assert_close(values[1], values[0])
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad)


def compiled(name: str, params: dict[str, Any], sizes: list[int]) -> None:
    def loss(x: torch.Tensor, labels: torch.Tensor) -> Any:
        return getattr(pairops, name)(x, labels, **params)

    unless_refused(lambda: loss(*_batch(6)))
    _same(loss, sizes)


def module(name: str, sizes: list[int]) -> None:
    _same(getattr(pairops.nn, name)(), sizes)


def annealed(name: str, keyword: str) -> None:
    """A Python number that changes at every step is compiled a few times at most."""

    def loss(x: torch.Tensor, labels: torch.Tensor, number: float) -> Any:
        return getattr(pairops, name)(x, labels, **{keyword: number})

    torch._dynamo.reset()
    counter = CompileCounter()
    faster = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    x, labels = _batch(12)
    for step in range(6):
        number = 0.9 - 0.1 * step
        torch.testing.assert_close(faster(x, labels, number), loss(x, labels, number))
    assert counter.frame_count <= 3, f"compiled {counter.frame_count} times for 6 numbers"
