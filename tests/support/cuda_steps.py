"""Launches, calls of the extension and Python's calls of a small step on the engine `cuda`, by the
kernels as compiled for a CPU: PYTHONPATH=tests python -m support.cuda_steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch

import pairops
from bench.cpu.call_path import WARM_UPS, entered, profiled
from pairops.losses.objective import lone_batches
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import devices
from support.cuda_on_host import build

N, D, PROCESSORS = 512, 64, 132


class Counts(NamedTuple):
    launches: int
    entries: int  # calls of the extension
    calls: int  # of Python, inside pairops
    files: int


@contextmanager
def as_on_a_gpu() -> Iterator[Any]:
    """The kernels of a CPU, which divide work as for a GPU; the module that has them."""
    backend = cuda_kernels.Backend.of(build.module(), "cpu")
    with (
        mock.patch.object(cuda_kernels, "BACKEND", replace(backend, related="cpu")),
        mock.patch.object(devices, "processors", return_value=PROCESSORS),
        mock.patch.object(lone_batches._watch, "warned", True),  # on a CPU it would look at once
        pairops.engine("cuda"),
    ):
        yield backend.module


def steps(n: int = N) -> dict[str, Callable[[], None]]:
    """A step of each loss, of one set or two."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, D, generator=random).bfloat16().unbind()
    labels = torch.arange(n) // 4
    both = x.requires_grad_(), y.clone().requires_grad_()
    return {
        "ms_loss": lambda: pairops.ms_loss(x, labels).backward(),
        "supcon_loss": lambda: pairops.supcon_loss(x, labels).backward(),
        "info_nce_loss": lambda: pairops.info_nce_loss(*both).backward(),
    }


def counts(step: Callable[[], None], module: Any) -> Counts:
    """The counts of a warm step."""
    for _ in range(WARM_UPS):
        step()
    module.forget_launches()
    files = entered(step)
    launches = len(module.launched())
    return Counts(launches, _entries(step, module), len(files), len(set(files)))


def _entries(step: Callable[[], None], module: Any) -> int:
    """How often a step calls a function of the extension that launches kernels."""
    names = "sort_by_label", "pack", "forward", "backward", "soft_mean", "soft_mean_slopes"
    launching = [getattr(module, name) for name in names]
    found: list[Any] = []

    def note(_: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function in launching:
            found.append(function)

    profiled(step, note)
    return len(found)


def table() -> list[str]:
    lines = ["| | launches | calls of the extension | Python calls | files entered |"]
    lines.append("|---|--:|--:|--:|--:|")
    with as_on_a_gpu() as module:
        for name, step in steps().items():
            cells = " | ".join(map(str, counts(step, module)))
            lines.append(f"| `{name}` | {cells} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
