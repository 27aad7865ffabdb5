"""What differs on a GPU: nothing is read back. On the CPU by its twin, on a GPU if there is one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops import Pairs
from pairops.losses.objective import lone_batches
from pairops.ops.engines.blockwise import grid
from support.on_cpu import device as device
from support.term_problems import all_statistics, problem, results


class Readings(TorchDispatchMode):
    """Counts what would make a GPU's host wait: values read, shapes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if op.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.seen.append(op.name())
        return op(*args, **(kwargs or {}))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("m", [0, 45])
def test_as_on_a_device_nothing_is_read_back(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of other devices, on the CPU: the same statistics and gradients, no value read."""
    x, labels, other = problem(m=m)
    labels[[5, 20]] = -100
    x[5] = torch.nan
    x.requires_grad_()
    if m:
        other["ref_labels"][7] = -100
    with pairops.engine("dense"):
        truth = results(lambda: all_statistics(Pairs.of(x, labels, **other)), [x])
    monkeypatch.setattr(grid, "readable", lambda _: False)
    # A batch without positives is looked for on a CPU at once, and on a GPU without waiting.
    monkeypatch.setattr(lone_batches._watch, "warned", True)
    with pairops.engine("blockwise"):
        pairs = Pairs.of(x, labels, **other)
        ours = results(lambda: all_statistics(pairs), [x])
        with Readings() as readings:
            value = pairops.ms_loss(x, labels) + pairops.triplet_loss(x, labels)
            torch.autograd.grad(value, x)
    assert readings.seen == []
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_nothing_waits_and_results_are_those_of_the_cpu() -> None:
    x, labels, _ = problem(n=700, d=33)
    on_gpu, gpu_labels = x.cuda().requires_grad_(), labels.cuda()
    pairops.ms_loss(on_gpu, gpu_labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = pairops.ms_loss(on_gpu, gpu_labels) + pairops.triplet_loss(on_gpu, gpu_labels)
        (gradient,) = torch.autograd.grad(value, on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    x.requires_grad_()
    truth = pairops.ms_loss(x, labels) + pairops.triplet_loss(x, labels)
    torch.testing.assert_close(value.cpu(), truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient.cpu(), torch.autograd.grad(truth, x)[0])
