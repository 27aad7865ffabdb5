"""The yardsticks: the work that a loss cannot avoid, and the rates at which a machine could do it.

The work is counted in products N×N×D. The same set visits the upper triangle of pairs: forward
needs half of s, backward half of s again and two products by half of the weights. Two sets need all
of s, twice, and two products by all of the weights. Every contestant is credited with the same
work, whatever it multiplies.

The hot rate is the best that `torch.mm` reaches on a product whose result it is given. One of the
size of the similarity matrix would be no yardstick on a CPU: writing 64 MiB takes as long as
multiplying them. The peak is that of multiply-adds that wait for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.contestants import Step
from bench.problems import Setting, takes_labels
from pairops.ops.bindings import extension

# (rows, inner, columns). On a CPU two factors and the result stay in cache. On a GPU that much is
# done before all processors have begun: 8192 x 8192 is some 2,000 tiles of 256 x 128, many times
# as many as there are processors, so that neither the launch nor the last, half empty round counts.
PRODUCT = {"cpu": (1024, 512, 1024), "cuda": (8192, 8192, 8192)}
ROUNDS = 5_000_000  # of multiply-adds: tens of milliseconds

HOT, PEAK = "hot", "peak"


class Products(NamedTuple):
    """Products N×N×D of a loss."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


def products(loss: str) -> Products:
    return Products(0.5, 1.5) if takes_labels(loss) else Products(1.0, 3.0)


def gigaflop(products: float, n: int, d: int) -> float:
    return products * 2 * n**2 * d / 1e9


@dataclass(frozen=True)
class Rates:
    """GFLOP/s of all threads of a run, or of the GPU."""

    hot: float
    peak: float | None  # None where it cannot be measured


class Work(NamedTuple):
    """Something to be timed that is all multiplication."""

    step: Step
    gigaflop: float

    def rate(self, seconds: list[float]) -> float:
        """GFLOP/s of the best call."""
        return self.gigaflop / min(seconds)


def hot_product(device: str, dtype: str) -> Work:
    rows, inner, columns = PRODUCT[device]
    a, b = (
        torch.randn(shape, device=device).to(getattr(torch, dtype))
        for shape in ((rows, inner), (inner, columns))
    )
    out = a.new_empty(rows, columns)
    return Work(lambda: torch.mm(a, b, out=out), 2 * rows * inner * columns / 1e9)


def multiply_adds(isa: str) -> Work:
    """On one thread, in float32; only where there is an extension."""
    native = extension.native
    return Work(lambda: native.probe_peak(isa, ROUNDS), native.probe_peak(isa, ROUNDS) / 1e9)


def yardsticks(setting: Setting) -> dict[str, Work]:
    """Those that a run can be held against."""
    works = {HOT: hot_product(setting.device, setting.dtype)}
    if setting.device == "cpu" and setting.dtype == "float32" and extension.native is not None:
        works[PEAK] = multiply_adds(extension.isa())
    return works


def rates(works: dict[str, Work], seconds: dict[str, list[float]], threads: int) -> Rates:
    """The peak is that of one thread times their number: where two share a core, out of reach."""
    peak = works[PEAK].rate(seconds[PEAK]) * threads if PEAK in works else None
    return Rates(works[HOT].rate(seconds[HOT]), peak)
