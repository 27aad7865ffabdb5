"""What every test stands on: poisoned memory, a device, small tiles, and the engines."""

import contextlib
import gc
import os
from collections.abc import Iterator

import pytest
import torch

# On the CPU Triton's kernels run in its interpreter, which it must be told before its import.
if os.environ.get("PAIROPS_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import pairops
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines import triton_engine
from pairops.ops.engines.blockwise import grid
from pairops.ops.engines.triton import tile_configs
from support import gloo_ranks
from support.engine_names import DEVICE, HERE, NARROW, WIDE

if DEVICE == "cpu" and triton_engine.MISSING is None:
    from support import triton_interpreter

    triton_interpreter.prepare()

# And the CUDA kernels as compiled for the CPU.
if DEVICE == "cpu":
    from support.cuda_on_host import build

    cuda_kernels.BACKEND = cuda_kernels.Backend.of(build.module(), "cpu")


# Small problems are most of what is tested, and to wake a second thread takes longer than they do.
# Tests of threads say how many there are, and the CPU engine's own tests have two.
torch.set_num_threads(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded stays; Python need not look through it for garbage again and again.

    And pytest-xdist must have marked the groups: with a pytest that it does not know it marks none,
    and every process then starts ranks and compiles kernels of its own.
    """
    if getattr(session.config.option, "loadgroup", False):
        grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
        apart = [item.nodeid for item in grouped if "@" not in item.nodeid]
        if apart:
            raise pytest.UsageError(f"pytest-xdist keeps no groups with this pytest: {apart[0]}")
    gc.collect()
    gc.freeze()


@pytest.fixture
def device() -> str:
    """Where tensors are made; `support.on_cpu` has another for tests that are about the CPU."""
    return DEVICE


@pytest.fixture(autouse=True)
def strict_torch(device: str) -> Iterator[None]:
    """The device; deterministic algorithms or an error; uninitialised memory filled with NaN."""
    # On the CPU not torch.manual_seed, which writes its call stack down for the other kinds of
    # device, and no `torch.device`, which hears of every call of torch.
    here = contextlib.nullcontext() if device == "cpu" else torch.device(device)
    (torch.default_generator.manual_seed if device == "cpu" else torch.manual_seed)(0)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    with here:
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


@pytest.fixture
def small_triton_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for Triton's interpreter."""
    row = tile_configs.Row(float("inf"), 32, 16, 16, 2, False, 4, 1)
    monkeypatch.setattr(tile_configs, "INTERPRETED", row)


@pytest.fixture(params=HERE)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with pairops.engine(request.param):
        yield request.param


@pytest.fixture(params=WIDE)
def wide_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with pairops.engine(request.param):
        yield request.param


@pytest.fixture(params=NARROW)
def gpu_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[name for name in WIDE if name != "cpu"])
def open_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of these, those that serve any term: what is compiled ahead knows no user's function."""
    with pairops.engine(request.param):
        yield request.param
