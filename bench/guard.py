"""The guard: nobody is timed whose loss or gradient differs from the float64 one by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contestants import Step, on_engine
from bench.problems import Problem
from bench.rivals import BOTH_WAYS, LABELLED, PAIRED, sides, similarities

# |value - truth| <= tolerance · max(1, |truth|), and the same for gradients in the 2-norm. Room is
# needed beyond rounding: a pair within rounding of a mining threshold is mined by one contestant
# and not by another, which moves the loss by up to 1/N and the gradient by up to 1/√N of itself.
TOLERANCE = {
    "float64": (1e-9, 1e-6),
    "float32": (1e-4, 5e-2),
    "float16": (1e-2, 1e-1),
    "bfloat16": (5e-2, 3e-1),
}

ROWS = 512


@dataclass(frozen=True)
class Truth:
    value: float
    gradients: tuple[Tensor, ...]

    def objection(self, step: Step, dtype: str) -> tuple[float, str | None]:
        """The value that a contestant gives, and what is wrong with it or its gradient."""
        value, gradients = step()
        got = value.item()
        complaint = self.objection_to_value(got, dtype)
        if complaint is not None:
            return got, complaint
        _, for_gradient = TOLERANCE[dtype]
        for mine, theirs in zip(self.gradients, gradients, strict=True):
            gap = ((theirs.double() - mine).norm() / mine.norm()).item()
            if not gap <= for_gradient:
                return got, f"WRONG: gradient off by {gap:.2g} of its norm (loss {got:.8g} agrees)"
        return got, None

    def objection_to_value(self, got: float, dtype: str) -> str | None:
        for_value, _ = TOLERANCE[dtype]
        # Written as `not <=`, here and for gradients, so that a NaN is wrong too.
        if not abs(got - self.value) <= for_value * max(1.0, abs(self.value)):
            return f"WRONG: loss {got:.8g}, in float64 {self.value:.8g}"
        return None


def truth(problem: Problem) -> Truth:
    """Value and gradients in float64, a few rows at a time, so that N is not bounded by memory."""
    exact = problem.in_float64()
    loss, leaves = exact.setting.loss, exact.leaves
    if loss not in LABELLED and loss not in PAIRED:
        value = on_engine("dense", loss)(exact.x, exact.other, **exact.learned)
        return Truth(value.item(), torch.autograd.grad(value, leaves))
    total = 0.0
    gradients = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    for start in range(0, len(exact.x), ROWS):
        part = some_rows(exact, slice(start, start + ROWS)) / len(exact.x)
        total += part.item()
        for sum_, gradient in zip(gradients, torch.autograd.grad(part, leaves), strict=True):
            sum_ += gradient
    return Truth(total, tuple(gradients))


def some_rows(problem: Problem, anchors: slice) -> Tensor:
    """The sum of the hand-written loss over some anchors."""
    loss, x = problem.setting.loss, F.normalize(problem.x)
    if loss in LABELLED:
        return LABELLED[loss](similarities(x[anchors], x), *sides(problem.other, anchors)).sum()
    y = F.normalize(problem.other)
    own = torch.arange(len(x), device=x.device)[anchors]
    value = PAIRED[loss](similarities(x[anchors], y), own, **problem.learned).sum()
    if loss in BOTH_WAYS:
        back = PAIRED[loss](similarities(y[anchors], x), own, **problem.learned).sum()
        value = (value + back) / 2
    return value
