"""The compiled engine in its process: whom it declines, signals, forks, threads, lack of memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

import pairops
from pairops import NEG, POS, Pairs, highest, partner, row_stats, total
from pairops.ops import engines
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.engines.plan import plan_of, serves

SETUP = """
import os, resource, signal, sys, torch, pairops
from pairops import NEG, Pairs, lse
from pairops.ops.engines import cpu as native
from pairops.ops.terms.term import Wanted
torch.set_num_threads(2)
torch.manual_seed(0)

def loss_and_gradient(n=700):
    with pairops.engine("cpu"):
        x = torch.randn(n, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = pairops.ms_loss(x, torch.arange(n) // 4)
        return value.detach(), torch.autograd.grad(value, x)[0]

def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))

first = loss_and_gradient()
assert first[1].abs().sum() > 0
"""


def python(code: str, *, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETUP + code],
        capture_output=True, text=True, timeout=timeout, env=os.environ | env, check=False,
    )  # fmt: skip


def test_a_term_without_a_recipe_is_declined_by_name() -> None:
    pairs = Pairs.of(torch.randn(60, 7), torch.arange(60) // 3)
    terms = [total(POS, partner(torch.ones(60)), 0.1)]
    with (
        pairops.engine("cpu"),
        pytest.raises(ValueError, match=r"recipes.h has the term sum:pos:affine\(po\)$"),
    ):
        row_stats(pairs, *terms)
    with pairops.engine("auto"):
        assert engines.choose(pairs, terms, []) == "blockwise"
        assert engines.choose(pairs, [total(POS, 0.1, 0.1)], []) == "cpu"


def test_a_plan_that_another_thread_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile is not told that a term is missing."""
    made = plan_of([total(POS, 0.1, 0.1)], [])
    assert made is not None
    plan, real, seen = replace(made, compiled=None), cpu_engine._native.Plan, []

    def meanwhile(*given: object) -> object:
        if not seen:
            seen.append(True)
            seen.append(serves(plan))
        return real(*given)

    monkeypatch.setattr(cpu_engine._native, "Plan", meanwhile)
    assert serves(plan)
    assert seen == [True, True]


def test_another_device_is_declined() -> None:
    pairs = Pairs.of(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))
    moved = replace(pairs, x=pairs.x.to("meta"))  # which `Pairs.of` would refuse
    reason = cpu_engine.declines(moved, [highest(NEG)], [])
    assert reason == "x is on meta; the cpu engine is for the CPU"


def test_an_unknown_instruction_set_is_refused() -> None:
    done = python("", PAIROPS_ISA="nonsense")
    assert done.returncode == 1
    known = ", ".join(pairops._native.isas())
    assert f"ValueError: PAIROPS_ISA is 'nonsense'; it must be one of those of this machine: {known}" in done.stderr  # noqa: E501  # fmt: skip


def test_the_variable_chooses_the_instruction_set() -> None:
    shown = "from pairops.ops.bindings import extension; print(extension.isa())"
    assert python(shown, PAIROPS_ISA="baseline").stdout == "baseline\n"


def test_memory_that_cannot_be_had_is_a_memory_error() -> None:
    """Its message has the bytes; afterwards everything works as before."""
    done = python("""
n, d = 65536, 512
x, labels = torch.ones(n, d), torch.arange(n) // 4
loss_and_gradient(4096)
pages = int(open("/proc/self/statm").read().split()[0])
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, before[1]))
with pairops.engine("cpu"), torch.no_grad():
    try:
        pairops.supcon_loss(x, labels, distance="dot")  # torch's norms need memory too
    except MemoryError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, before)
assert equal(first, loss_and_gradient())
""")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:4] == ["the", "cpu", "engine", "needs"]
    assert words[5] == "bytes"
    assert int(words[4]) > 2**20


def test_an_interrupt_arrives_and_leaves_nothing_behind() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SETUP + """
# A shell's background job ignores the signal, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
x, labels = torch.rand(131072, 256), torch.arange(131072) // 4
with pairops.engine("cpu"), torch.no_grad():
    try:
        print("begins", flush=True)
        pairops.supcon_loss(x, labels)
        print("ended", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
assert equal(first, loss_and_gradient())
print("works", flush=True)
"""],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        time.sleep(1.5)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        assert time.monotonic() - sent < 5
        assert child.stdout.readline() == "works\n"
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.communicate()


def test_a_forked_child_computes_the_same_with_several_threads() -> None:
    """OpenMP's threads do not survive a fork, so the engine has to find others. Torch does not: its
    searchsorted hangs, so the relation is made before."""
    done = python(
        """
pairs = Pairs.of(torch.randn(700, 16), torch.arange(700) // 4)
terms = [lse(NEG, 5.0, torch.rand(700))]
cotangents = [torch.rand(700)]

def sweeps():
    statistics, _, bits = native.forward(pairs, terms, [])
    wanted = Wanted(True, False)
    dx, _, slopes = native.backward(pairs, terms, [], statistics, cotangents, bits, wanted)
    return *statistics, dx, *slopes

before = sweeps()
child = os.fork()
if child == 0:
    assert torch.get_num_threads() == 2
    os._exit(0 if equal(before, sweeps()) else 3)
status = os.waitpid(child, 0)[1]
assert equal(before, sweeps())
sys.exit(os.waitstatus_to_exitcode(status))
""",
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_a_worker_of_a_data_loader_computes_the_same() -> None:
    done = python("""
class Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return loss_and_gradient()

loader = torch.utils.data.DataLoader(
    Losses(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=20
)
assert [equal(first, item) for item in loader] == [True, True]
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backward", [False, True])
def test_other_python_threads_run_meanwhile(backward: bool) -> None:
    """Moments of this thread that lie well inside a call of another."""
    x, labels = torch.randn(12000, 64, requires_grad=backward), torch.arange(12000) // 4
    inside: list[tuple[float, float]] = []

    def timed(call: object) -> object:
        def run(*arguments: object) -> object:
            begin = time.perf_counter()
            result = call(*arguments)  # type: ignore[operator]
            inside.append((begin, time.perf_counter()))
            return result

        return run

    def work() -> None:
        with pairops.engine("cpu"):
            value = pairops.ms_loss(x, labels, epsilon=None)  # one call of each
        if backward:
            value.backward()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("planned_forward", "planned_backward"):
            patch.setattr(cpu_engine, name, timed(getattr(cpu_engine, name)))
        thread = threading.Thread(target=work)
        moments = []
        thread.start()
        while thread.is_alive():
            moments.append(time.perf_counter())
            time.sleep(0.001)
        thread.join()
    assert len(inside) == 1 + backward
    for begin, end in inside:
        quarter = (end - begin) / 4
        assert sum(begin + quarter < at < end - quarter for at in moments) >= 5
