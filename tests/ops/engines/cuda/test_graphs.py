"""What a CUDA graph needs of a step, as far as a CPU can show it: docs/engines/cuda.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops.losses.objective import lone_batches
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import devices
from pairops.ops.row_stats import cuda_mean
from support.cuda_backend import change_backend
from support.engine_names import DEVICE
from support.exhaustive import exhaustive

if DEVICE != "cpu":
    pytest.skip("the kernels of this test record themselves on a CPU", allow_module_level=True)

CSRC = Path(__file__).parents[4] / "csrc"

# What the sources may ask the runtime for. None of it allocates or waits, or is refused while a
# stream is captured.
RUNTIME = {
    "cudaError_t", "cudaSuccess", "cudaGetLastError", "cudaGetErrorName", "cudaGetErrorString",
    "cudaFuncAttributes", "cudaFuncGetAttributes", "cudaFuncSetAttribute",
    "cudaFuncAttributeMaxDynamicSharedMemorySize", "cudaGetDevice", "cudaLaunchKernel",
    "cudaStream_t",
}  # fmt: skip
# Ops that read a value, and so wait for a GPU.
WAIT = {"aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default"}
WAIT |= {"aten.nonzero.default", "aten.equal.default", "aten._to_copy.default"}


class Captured(TorchDispatchMode):
    """The names of ops; and tensors stay where they are, as in a graph's pool of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.pool: list[Any] = []

    def __torch_dispatch__(self, op: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(op))
        self.pool.append(op(*args, **(kwargs or {})))
        return self.pool[-1]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    change_backend(monkeypatch, related="cpu")
    monkeypatch.setattr(devices, "processors", lambda _: 132)
    monkeypatch.setattr(lone_batches._watch, "warned", True)  # on a CPU it would look at once
    # A mode that looks on is no reason to go another way here.
    monkeypatch.setattr(cuda_mean, "followed_by_autograd_alone", lambda *_: True)


def step(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, as `torch.autograd.grad` gives it inside of a graph."""
    with pairops.engine("cuda"):
        loss = pairops.ms_loss(x, labels)
    return loss, torch.autograd.grad(loss, x)[0]


def batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n // 3, (n,), generator=random)
    labels[: seed % 7] = -100
    return torch.randn(n, 20, generator=random).bfloat16(), labels


@pytest.mark.parametrize("n", [130, pytest.param(300, marks=exhaustive)])
def test_a_step_that_is_replayed_is_a_step(n: int) -> None:
    """New embeddings and labels, copied to where the old ones were, give their own loss and
    gradient: no launch depends on a value that the host has seen."""
    kernels = cuda_kernels.installed().module
    x, labels = batch(n, 0)
    x.requires_grad_()
    step(x, labels)
    with Captured() as captured:
        kernels.record(True)
        loss, gradient = step(x, labels)
        kernels.record(False)
    for seed in (1, 12):
        new_x, new_labels = batch(n, seed)
        truth = step(new_x.requires_grad_(), new_labels)
        with torch.no_grad():
            x.copy_(new_x)
            labels.copy_(new_labels)
        kernels.replay()
        for found, expected in zip((loss, gradient), truth, strict=True):
            assert torch.equal(found, expected)
    assert len(captured.pool) > 10


def test_steps_launch_the_same_and_read_nothing() -> None:
    kernels = cuda_kernels.installed().module
    seen = []
    for seed in (1, 2):
        x, labels = batch(130, seed)
        x.requires_grad_()
        kernels.forget_launches()
        with Captured() as captured:
            step(x, labels)
        assert not WAIT.intersection(captured.names)
        seen.append((kernels.launched(), captured.names))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 8


def test_the_sources_neither_allocate_nor_wait() -> None:
    """All memory is torch's, which a graph's pool holds. The twin on this CPU would not tell."""
    sources = [*CSRC.glob("cuda/**/*.*"), *CSRC.glob("bindings/cuda*")]
    asked: set[str] = set()
    for path in sources:
        asked |= set(re.findall(r"\bcu(?:da)?[A-Z]\w*", path.read_text()))
    assert "cudaLaunchKernel" in asked
    assert asked <= RUNTIME, asked - RUNTIME
    text = "".join(path.read_text() for path in sources if "device" not in str(path))
    assert not re.search(r"\b(malloc|sleep|std::this_thread|new char)\b", text)
