"""cached_step where the plain step does not fit, and on ranks that have unequal rows."""

import contextlib
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import pairops
from pairops import cached_step
from support.exhaustive import exhaustive
from support.gloo_ranks import Ranks

DOUBLE = torch.float64


class Saved:
    """What a graph holds of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output would hold its graph, which holds it


def test_one_chunk_has_a_graph_at_a_time_and_embeddings_go_before_the_second_pass() -> None:
    body, inputs = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)), torch.randn(20, 6)
    held: weakref.WeakSet[Saved] = weakref.WeakSet()
    embeddings: list[weakref.ref[Tensor]] = []
    most: list[int] = []

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        held.add(saved)
        return saved

    def loss(x: Tensor) -> Tensor:
        embeddings.append(weakref.ref(x))
        return x.square().sum()

    def encoder(rows: Tensor) -> Tensor:
        assert not held
        assert not embeddings or embeddings[0]() is None
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            x: Tensor = body(rows)
        most.append(len(held))
        return x

    cached_step(loss, (encoder, inputs), chunk_size=5)
    graph = most[0]
    assert graph > 0
    assert most == [graph, 0, 0, 0] + [graph] * 4
    assert not held


class Telling(nn.Module):
    """Tells of every call whether it has a graph, and whether other ranks would hear of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.syncs = nn.Linear(6, 5), True
        self.calls: list[tuple[bool, bool]] = []

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        self.syncs = False
        yield
        self.syncs = True

    def forward(self, rows: Tensor) -> Tensor:
        self.calls.append((torch.is_grad_enabled(), self.syncs))
        x: Tensor = self.body(rows)
        return x


def test_gradients_are_sent_in_the_last_chunk_of_an_encoder() -> None:
    shared, other = Telling(), Telling()
    sets = (shared, torch.randn(5, 6)), (other, torch.randn(0, 6)), (shared, torch.randn(3, 6))
    cached_step(lambda x, y, z: x.sum() + y.sum() + z.sum(), *sets, chunk_size=2)
    first = [(True, False), (False, False)]
    assert shared.calls[:5] == [*first, (False, False), *first]
    assert shared.calls[5:] == [(True, False)] * 4 + [(True, True)]
    assert other.calls == [(True, False), (True, True)]


class Shifted(nn.Module):
    """With a buffer, which DistributedDataParallel takes from rank 0 before the step."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(6, dtype=DOUBLE))
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).to(DOUBLE)

    def forward(self, rows: Tensor) -> Tensor:
        x: Tensor = self.body(rows + self.shift)
        return x


def steps(group: Any, rows: int, cached: bool) -> list[Tensor]:
    """Of three steps on this rank the values and the gradients."""
    torch.manual_seed(0)
    buffered, shared = (
        DistributedDataParallel(module, process_group=group)
        for module in (Shifted(), nn.Sequential(nn.Linear(6, 5), nn.Tanh()).to(DOUBLE))
    )
    sent: list[int] = []

    # DistributedDataParallel insists on these very annotations.
    def hook(
        _: object,
        bucket: distributed.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        sent.append(bucket.index())
        work = distributed.all_reduce(bucket.buffer().div_(2), group=group, async_op=True)
        mean: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return mean

    shared.register_comm_hook(None, hook)
    found = []
    for step in range(3):
        torch.manual_seed(10 * step + distributed.get_rank(group))
        buffered.module.shift.fill_(distributed.get_rank(group) + step)
        sets = [(model, torch.randn(rows, 6, dtype=DOUBLE)) for model in (shared, buffered, shared)]
        labels = torch.arange(rows) // 2

        def loss(x: Tensor, y: Tensor, z: Tensor, labels: Tensor = labels) -> Any:
            return pairops.info_nce_loss(x, z) + pairops.ms_loss(y, labels)

        if cached:
            value = cached_step(loss, *sets, chunk_size=2)
        else:
            value = loss(*[model(inputs) for model, inputs in sets])
            value.backward()
        assert sent == [0]
        sent.clear()
        found.append(value.detach())
        for parameter in [*buffered.parameters(), *shared.parameters()]:
            assert parameter.grad is not None
            found.append(parameter.grad.clone())
            parameter.grad = None
    return found


def compare(group: Any, rows: int) -> str:
    ours, plain = (steps(group, rows, cached) for cached in (True, False))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    return "equal"


@pytest.mark.slow
@exhaustive
def test_ranks_of_unequal_rows_are_the_plain_step() -> None:
    """Three chunks and two; two and one of no rows."""
    ranks = Ranks(2, timeout=30)
    try:
        for rows in ([5, 3], [4, 0]):
            assert ranks.run(2, f"{__name__}:compare", rows) == ["equal", "equal"]
    finally:
        ranks.stop()


LARGE = """
import copy, resource, torch, pairops
from torch import nn

torch.set_num_threads(2)
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(16, 4096), nn.Tanh(), nn.Linear(4096, 16))

def batch(n):
    labels = torch.arange(n) // 4
    return torch.randn(n // 4, 16)[labels] + 0.5 * torch.randn(n, 16), labels

def plain(loss, encoder, inputs):
    value = loss(encoder(inputs))
    value.backward()
    return value.detach()

def cached(loss, encoder, inputs):
    return pairops.cached_step(loss, (encoder, inputs), chunk_size=1024)

def found(step, n, dtype):
    torch.manual_seed(n)
    inputs, labels = batch(n)
    encoder = copy.deepcopy(network).to(dtype)
    value = step(lambda x: pairops.contrastive_loss(x, labels), encoder, inputs.to(dtype))
    return value, *[parameter.grad for parameter in encoder.parameters()]

# Both sizes of float, so that threads and their memory are there before the limit is.
for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
    for ours, expected in zip(found(cached, 2048, dtype), found(plain, 2048, dtype)):
        assert expected.abs().max() > 0
        assert (ours - expected).abs().max() <= near * expected.abs().max()

pages = int(open("/proc/self/statm").read().split()[0])
_, hard = resource.getrlimit(resource.RLIMIT_AS)
limit = pages * resource.getpagesize() + 384 * 2**20  # one layer of the plain step is 512 MiB
resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
inputs, labels = batch(32768)
try:
    plain(lambda x: pairops.contrastive_loss(x, labels), network, inputs)
except (RuntimeError, MemoryError) as error:
    assert "memory" in str(error), error
    print("the plain step does not fit")
optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
for _ in range(2):
    optimizer.zero_grad()
    print(cached(lambda x: pairops.contrastive_loss(x, labels), network, inputs).item())
    optimizer.step()
"""


@pytest.mark.slow
@exhaustive
def test_32768_rows_train_where_the_plain_step_does_not_fit() -> None:
    # Of glibc, whose arenas reserve addresses for each thread and keep freed memory in pieces: one
    # arena, and pages of its own for what takes 256 KiB or more.
    whole = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    done = subprocess.run(
        [sys.executable, "-c", LARGE], env=os.environ | whole, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, *losses = done.stdout.splitlines()
    assert refused == "the plain step does not fit"
    before, after = map(float, losses)
    assert after < 0.9 * before
