"""A training step at small N costs what its launches, and Python's calls until then, cost:
docs/engines/cuda.md has the tables."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops.losses.objective import lone_batches
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import devices
from pairops.ops.row_stats import cuda_mean
from support import cuda_steps
from support.cuda_backend import change_backend
from support.exhaustive import exhaustive

OWN = [
    "sort_by_label", "forward", "forward", "finalize", "forward", "soft_mean", "backward",
    "through_scale",
]  # fmt: skip
# Of the 1 that loss.backward() begins with, before it asks us.
TORCH_S = ["aten.ones_like.default"]
WITHOUT_A_KERNEL = (
    "aten.detach",
    "aten.empty",
    "aten.expand",
    "aten.new_empty",
    "aten.unbind",
    "aten.view",
    "pairops.",
)


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", [128, 512, pytest.param(1024, marks=exhaustive)])
def test_launches_of_a_step(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU of 132 processors. Allocations inside the ops are of empty memory."""
    change_backend(monkeypatch, related="cpu")
    monkeypatch.setattr(devices, "processors", lambda _: 132)
    monkeypatch.setattr(lone_batches._watch, "warned", True)  # on a CPU it would look at once
    x = torch.randn(n, 16).bfloat16().requires_grad_()
    labels = torch.arange(n) // 4
    with pairops.engine("cuda"):
        pairops.ms_loss(x, labels).backward()
        cuda_kernels.installed().module.forget_launches()
        # A mode that looks on is no reason to go another way here.
        monkeypatch.setattr(cuda_mean, "followed_by_autograd_alone", lambda *_: True)
        with Ops() as ops:
            pairops.ms_loss(x, labels).backward()
    launched = [name.partition(" ")[0] for name in cuda_kernels.installed().module.launched()]
    assert launched == OWN
    by_torch = sorted(name for name in ops.names if not name.startswith(WITHOUT_A_KERNEL))
    assert by_torch == sorted([*TORCH_S, "aten.add_.Tensor"])  # into the gradient that x has
    assert len(launched) == 8


def test_no_op_of_a_step_calls_torch_s_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ops do inside, which the count above does not see."""
    change_backend(monkeypatch, related="cpu")
    monkeypatch.setattr(torch, "zeros", _refused)
    monkeypatch.setattr(torch.Tensor, "to", _refused_if_it_copies(torch.Tensor.to))
    monkeypatch.setattr(torch.Tensor, "contiguous", _refused_if_it_copies(torch.Tensor.contiguous))
    x = torch.randn(200, 16).bfloat16().requires_grad_()
    with pairops.engine("cuda"):
        pairops.ms_loss(x, torch.arange(200) // 4).backward()
    assert x.grad is not None


def test_calls_of_a_step() -> None:
    """As many as the table says at most: one of the extension before a pass, and one for each."""
    with cuda_steps.as_on_a_gpu() as module:
        found = cuda_steps.counts(cuda_steps.steps(130)["ms_loss"], module)
    assert (found.launches, found.entries) == (8, 3)
    assert found.calls <= 150


def _refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("a launch more")


def _refused_if_it_copies(method: Any) -> Any:
    def watched(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = method(self, *args, **kwargs)
        assert result.data_ptr() == self.data_ptr(), "a launch more"
        return result

    return watched
