"""The contestants: every engine of pairops, and what people use today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import pairops
from bench.problems import Problem, function
from bench.rivals import by_hand, by_pytorch_metric_learning
from pairops.ops.engines import ENGINES

Loss = Callable[..., Tensor]  # (x, labels or y, **learned) -> scalar
Step = Callable[[], object]  # the work that is measured


@dataclass(frozen=True)
class Contestant:
    key: str
    label: str
    make: Callable[[str], Loss]  # from the name of a loss; raises where there is none
    compiles: bool = False  # the first call at each N is unlike those that follow

    def step(self, problem: Problem) -> Step:
        """Forward and backward as one call, giving (value, gradients)."""
        loss, leaves = self.make(problem.setting.loss), problem.leaves

        def forward_backward() -> tuple[Tensor, tuple[Tensor, ...]]:
            value = loss(problem.x, problem.other, **problem.learned)
            return value.detach(), torch.autograd.grad(value, leaves)

        return forward_backward

    def forward(self, problem: Problem) -> Step:
        """The loss alone, as evaluation calls it."""
        loss = self.make(problem.setting.loss)

        def forward() -> Tensor:
            with torch.no_grad():
                return loss(problem.x, problem.other, **problem.learned)

        return forward


def on_engine(engine: str, loss: str) -> Loss:
    def call(*args: Tensor, **learned: Tensor) -> Tensor:
        with pairops.engine(engine):
            return function(loss)(*args, **learned)

    return call


@cache
def compiled(loss: str) -> Loss:
    """With static shapes, the compiler's best case: a training run has one batch size."""
    return torch.compile(by_hand(loss), dynamic=False, fullgraph=True)


def contestants() -> dict[str, Contestant]:
    """Everyone, by key. An engine takes part by being in `pairops.ops.engines.ENGINES`."""
    engines = [
        Contestant(key, f"pairops {key}", lambda loss, key=key: on_engine(key, loss))
        for key in ENGINES
    ]
    everyone = [
        *engines,
        Contestant("hand", "torch by hand", by_hand),
        Contestant("compiled", "torch.compile by hand", compiled, compiles=True),
        Contestant("pml", "pytorch-metric-learning", by_pytorch_metric_learning),
    ]
    return {contestant.key: contestant for contestant in everyone}


def reason(error: BaseException) -> str:
    """Why a contestant cannot take part, on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:160]
