"""What every test stands on: poisoned memory, small tiles, the engines, and the error rule."""

import gc
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from support import gloo_ranks

# `python -m bench gpu` runs these tests with "cuda".
DEVICE = os.environ.get("PAIROPS_TEST_DEVICE", "cpu")

# On the CPU Triton's kernels run in its interpreter, which it must be told before its import.
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import pairops
from pairops.ops import engines
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines.blockwise import grid

if DEVICE == "cpu" and engines.triton_engine.MISSING is None:
    from support import triton_interpreter

    triton_interpreter.prepare()

# And the CUDA kernels as compiled for the CPU.
if DEVICE == "cpu":
    from support.cuda_on_host import build

    cuda_kernels.install(build.module(), "cpu")


# What these modules test is there on the CPU only, or chooses its device itself.
OF_THE_CPU = {
    "test_bench", "test_bench_commands", "test_code_search", "test_compat_pml",
    "test_compat_sentence_transformers", "test_compat_sentence_transformers_numbers", "test_device",
    "test_distributed", "test_distributed_edges", "test_distributed_errors",
    "test_distributed_process",
    "test_examples", "test_formulas", "test_formulas_by_hand", "test_formulas_pml",
    "test_formulas_twice", "test_formulas_two_sets",
    "test_lightning", "test_memory", "test_native", "test_native_engine", "test_native_process",
    "test_relation",
    "test_report", "test_training", "test_triton_compiled",
}  # fmt: skip
TRITON = ["triton", "chunked"]
NARROW = ["cuda", *TRITON]  # those that sum in float32
HERE = [name for name in engines.ENGINES if DEVICE == "cpu" or name != "native"]
WIDE = [name for name in HERE if name not in NARROW]  # those that serve float64


def pytest_collection_finish() -> None:
    """What is loaded stays; Python need not look through it for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def strict_torch(request: pytest.FixtureRequest) -> Iterator[None]:
    """The device; deterministic algorithms or an error; uninitialised memory filled with NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    with torch.device("cpu" if request.module.__name__ in OF_THE_CPU else DEVICE):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def ranks() -> Iterator[gloo_ranks.Ranks]:
    """Processes that are the ranks of gloo groups; for tests of the xdist group "ranks"."""
    started = gloo_ranks.Ranks()
    yield started
    started.stop()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that a few dozen rows are many tiles, ragged ones among them."""
    monkeypatch.setattr(grid, "ROWS", 17)
    monkeypatch.setattr(grid, "COLS", 29)


@pytest.fixture(params=HERE)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with pairops.use(request.param):
        yield request.param


@pytest.fixture(params=WIDE)
def wide_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with pairops.use(request.param):
        yield request.param


@pytest.fixture(params=NARROW)
def gpu_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[name for name in WIDE if name != "native"])
def open_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of these, those that serve any term: what is compiled ahead knows no user's function."""
    with pairops.use(request.param):
        yield request.param


def assert_within_rule(name: str, ours: Tensor, dense: list[Tensor], truth: Tensor) -> None:
    """Error against float64 ≤ 2 × that of dense torch + 4ε·max|truth|, in the max norm.

    ours, dense: of the same dtype and on the same stored inputs; of several dense results the worst
    counts. ε is float32's, or float64's for float64.
    """
    assert ours.shape == truth.shape, name
    assert all(ours.dtype == d.dtype for d in dense), name
    if not truth.numel():
        return
    assert bool(torch.isfinite(truth).all()), f"{name}: the truth itself is not finite"
    eps = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
    error, *errors = (float((t.double() - truth).abs().max()) for t in (ours, *dense))
    allowed = max(errors)
    bound = 2 * allowed + 4 * eps * float(truth.abs().max())
    assert error <= bound, f"{name}: error {error:.3g} > {bound:.3g}, dense torch has {allowed:.3g}"


Gradients = list[Tensor]


def gradients(function: Callable[[], Tensor], leaves: list[Tensor], weight: Tensor) -> Gradients:
    """Gradients of Σ weight·function() by the leaves; zeros where there is no path."""
    total = (function() * weight).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves, strict=True)]
