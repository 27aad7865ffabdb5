"""Memory that cannot be had: a MemoryError that says how much, wherever torch was asked for it."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pairops
from pairops import nn, retrieval
from pairops.losses.objective import lone_batches
from pairops.ops.distributed.allocation import refusing
from pairops.ops.engines.blockwise import engine as blockwise_engine
from support.exhaustive import exhaustive_but
from support.named_cases import smooth
from support.on_cpu import device as device

SAID = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 3145728 bytes. Error code 12 (Cannot allocate memory)"
)


class Refused(TorchDispatchMode):
    """Within this context one call of torch, counted from 0, is refused its memory.

    inside: those in the bodies of pairops' ops alone are counted.
    """

    def __init__(self, at: int, *, inside: bool) -> None:
        super().__init__()
        self.left, self.counts = at, not inside

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if op.namespace == "pairops":
            counts, self.counts = self.counts, True
            with self:
                body = torch._C.DispatchKey.CompositeExplicitAutograd
                result = op._op_dk(body, *args, **(kwargs or {}))
            self.counts = counts
            return result
        result = op(*args, **(kwargs or {}))
        # An empty tensor takes no memory: by one a device is asked whether it has float64.
        if self.counts and any(isinstance(z, Tensor) and z.numel() for z in tree_leaves(result)):
            self.left -= 1
            if self.left == -1:
                raise RuntimeError(SAID)
        return result


def batch() -> tuple[Tensor, Tensor]:
    return smooth(24, 9).requires_grad_(), torch.arange(24) // 3


SUPCON = nn.SupConLoss()


def memory(x: Tensor, labels: Tensor) -> Any:
    return pairops.CrossBatchMemory(SUPCON, 9, 30)(x, labels)


OTHER = smooth(24, 9)

LOSSES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "ms_loss": pairops.ms_loss,
    "l2": lambda x, labels: pairops.supcon_loss(x, labels, distance="l2", normalize=False),
    "info_nce_loss": lambda x, _: pairops.info_nce_loss(x, OTHER),
    "all triplets": lambda x, labels: pairops.triplet_loss(x, labels, mining="all"),
    "CrossBatchMemory": memory,
    "row_stats": lambda x, labels: pairops.row_stats(
        pairops.Pairs.of(x, labels), pairops.lse(pairops.NEG, 5.0, 0.0)
    ),
}
LOOKS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "evaluate": retrieval.evaluate,
    "first_ranks": retrieval.first_ranks,
    "average_precisions": retrieval.average_precisions,
    "dual_softmax": lambda x, _: retrieval.dual_softmax(x, OTHER, OTHER, dynamic=True),
    "pair_weights": lambda x, labels: pairops.pair_weights(pairops.supcon_loss, x, labels),
    "mine": pairops.mine,
    "mine semihard": lambda x, labels: pairops.mine(x, labels, mining="semihard"),
}


def refusals(run: Callable[[], Any], *, inside: bool = False, step: int = 5) -> int:
    """How many of the calls that `run` makes of torch are refused in turn; each is an error."""
    for found in range(0, 10_000, step):
        mode = Refused(found, inside=inside)
        try:
            with mode:
                run()
        except MemoryError as error:
            assert str(error).startswith("3145728 bytes (3.0 MiB) cannot be had; ")  # noqa: PT017
            continue
        assert mode.left >= 0, "an allocation was refused and nobody was told"
        return found
    raise AssertionError("there is no end")


@pytest.mark.parametrize(
    ("name", "engine"),
    exhaustive_but(
        itertools.product([*LOSSES, *LOOKS], ["auto", "blockwise", "dense"]),
        lambda _, engine: engine != "dense",  # torch's own
    ),
)
def test_every_allocation(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A warning that cannot be had is left out.
    monkeypatch.setattr(lone_batches._watch, "warned", True)
    x, labels = batch()
    call = {**LOSSES, **LOOKS}[name]
    with pairops.engine(engine):
        assert refusals(lambda: call(x, labels)) >= 10


class Passing(TorchDispatchMode):
    """Looks on, so that pairops' ops are called."""

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ["cpu", "blockwise"])
@pytest.mark.parametrize("name", ["ms_loss", "info_nce_loss", "all triplets"])
def test_every_allocation_of_a_gradient(name: str, engine: str) -> None:
    x, labels = batch()
    with pairops.engine(engine), Passing():
        value = LOSSES[name](x, labels)
        backward = lambda: torch.autograd.grad(value, x, retain_graph=True)  # noqa: E731
        assert refusals(backward, inside=True, step=1) >= 2


@pytest.mark.parametrize("engine", ["cpu", "blockwise"])
@pytest.mark.parametrize("name", ["ms_loss", "info_nce_loss", "row_stats"])
def test_every_allocation_of_an_eager_gradient(name: str, engine: str) -> None:
    """Of one node: what torch allocates between nodes is torch's."""
    if engine != "cpu" and name != "row_stats":
        pytest.skip("its mean is made of several nodes")
    x, labels = batch()
    with pairops.engine(engine):
        value = LOSSES[name](x, labels)
        value = value[0] if isinstance(value, tuple) else value
        ones = torch.ones_like(value)
        backward = lambda: torch.autograd.grad(value, x, ones, retain_graph=True)  # noqa: E731
        assert refusals(backward, step=1) >= 2


@pytest.mark.parametrize("what", ["forward", "backward"])
def test_in_compiled_code(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: pairops.supcon_loss(x, labels), fullgraph=True, backend="aot_eager"
    )

    def without_room(*_: Any) -> Any:
        raise RuntimeError(SAID)

    with pairops.engine("blockwise"):
        compiled(x).backward()
        monkeypatch.setattr(blockwise_engine, what, without_room)
        with pytest.raises(MemoryError, match="3145728 bytes"):
            compiled(x).backward()


def test_what_is_no_lack_of_memory_stays_what_it_was() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate memory: 3 bytes"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("can't allocate memory: you tried to allocate 3 bytes"),
    ):

        @refusing
        def fails(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            fails()
        assert caught.value is error


def test_in_a_process_with_a_limit() -> None:
    """The compiled engine, blockwise, retrieval, pair weights; with no room left, and with some."""
    code = """
import resource, torch, pairops
torch.set_num_threads(1)
n = 4000
x, labels = torch.randn(n, 512), torch.randint(0, 1200, (n,))
calls = {
    "step": lambda x, labels: pairops.supcon_loss(x, labels).backward(),
    "evaluate": pairops.retrieval.evaluate,
    "pair_weights": lambda x, labels: pairops.pair_weights(pairops.supcon_loss, x, labels),
}

def size():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmSize")]
    return int(line.split()[1]) * 1024

for engine in ("cpu", "blockwise"):
    for name, call in calls.items():
        with pairops.engine(engine):
            call(torch.randn(60, 8).requires_grad_(), torch.arange(60) // 2)
            for room in (0, 4) if name == "step" else (0,):
                mine = x.clone().requires_grad_()
                resource.setrlimit(resource.RLIMIT_AS, (size() + (room << 20), -1))
                try:
                    call(mine, labels)
                    said = "served"
                except Exception as error:
                    said = f"{type(error).__name__}: {error}"
                resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
                print(said)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=100, env=dict(os.environ), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert line.startswith("MemoryError: "), line
        assert " bytes (" in line
