"""Whether pairops works with the torch and the Triton that are installed: a row of docs/testing.md.

PYTHONPATH=tests python -m support.torch_versions

prints a table of one row, and fails if a check does. It needs torch, numpy, pairops and, for
torch.compile, a C++ compiler; no GPU, and nothing of what the tests need besides. Every check runs
in a process of its own, where a warning of our own lines is an error.
"""

import argparse
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

import oracle
import pairops.nn
from pairops.ops.bindings import extension
from pairops.ops.engines import triton_engine
from support.error_rule import Dense, assert_within_rule
from support.gloo_ranks import Ranks
from support.named_cases import embeddings
from support.project import SUPPORT

Loss = Callable[..., Tensor]  # of x, y and labels
Run = Callable[[Loss], Loss]  # what is done to a loss before it is called: it is compiled, say


def _labelled(loss: Loss, x: Tensor, _: Tensor, labels: Tensor, **how: Any) -> Tensor:
    return loss(x, labels, **how)


def _of_two_sets(loss: Loss, x: Tensor, y: Tensor, _: Tensor, **how: Any) -> Tensor:
    return loss(x, y, **how)


# Of each the library's and the formula. One is mined, one has several positives, one has two sets.
SIMILAR: dict[str, tuple[Loss, Loss]] = {
    name: (partial(form, getattr(pairops, name)), partial(form, getattr(oracle, name)))
    for name, form in {
        "ms_loss": _labelled,
        "supcon_loss": _labelled,
        "info_nce_loss": _of_two_sets,
    }.items()
}
# And a distance, which the compiled engine does not serve, in a Module.
LOSSES = {
    **SIMILAR,
    "LossModule": (
        partial(_labelled, pairops.nn.LossModule(pairops.supcon_loss, distance="l2")),
        partial(_labelled, partial(oracle.supcon_loss, distance="l2")),
    ),
}
SECONDS = 900  # that a check may take


def problem(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return embeddings(n, 32, dtype), embeddings(n, 32, dtype), torch.arange(n) % 5


def hold(name: str, n: int, run: Run = lambda loss: loss) -> None:
    """Losses and gradients of float32 embeddings against the formula in float64, by the rule."""
    ours, formula = LOSSES[name]
    x, y, labels = problem(n)

    def results(loss: Loss, like: torch.dtype) -> list[Tensor]:
        leaves = [z.to(like).detach().requires_grad_() for z in (x, y)]
        values = loss(*leaves, labels)
        found = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
        return [values.detach(), *[g for g in found if g is not None]]

    found = results(run(partial(ours, reduction="none")), torch.float32)
    truth = results(partial(formula, dtype=torch.float64), torch.float64)
    dense = Dense(lambda: results(partial(formula, dtype=torch.float32), torch.float32))
    assert len(found) == len(truth)
    for k, right in enumerate(truth):
        assert_within_rule(f"{name}, result {k}", found[k], dense.result(k), right)


def on(*engines: str, losses: Iterable[str] = LOSSES) -> str:
    for engine in engines:
        with pairops.engine(engine):
            for name in losses:
                hold(name, 24)
    return "right"


def eager() -> str:
    return on("dense", "blockwise")


def compiled_engine() -> str:
    assert extension.native is not None, extension.MISSING
    return on("cpu", losses=SIMILAR)


def compiled_graph(sizes: list[int], dynamic: bool) -> str:
    """One graph for each loss, and no second one for another size."""
    torch._dynamo.config.error_on_recompile = True
    for name in LOSSES:
        torch._dynamo.reset()
        kept: list[Loss] = []

        def run(loss: Loss, kept: list[Loss] = kept) -> Loss:
            kept[:] = kept or [torch.compile(loss, fullgraph=True, dynamic=dynamic)]
            return kept[0]

        for n in sizes:
            hold(name, n, run)
    return "right"


def transforms() -> str:
    """torch.func, in float64, against autograd on the formula."""
    for ours, formula in LOSSES.values():
        x, y, labels = problem(6, torch.float64)

        def loss(z: Tensor, ours: Loss = ours, y: Tensor = y, of: Tensor = labels) -> Tensor:
            return ours(z, y, of)

        def truth(z: Tensor, formula: Loss = formula, y: Tensor = y, of: Tensor = labels) -> Tensor:
            return formula(z, y, of, dtype=torch.float64).mean()

        batch = torch.stack([x, x.roll(1, 1)])
        slopes = [torch.autograd.functional.jacobian(truth, z) for z in batch]
        torch.testing.assert_close(torch.func.grad(loss)(x), slopes[0])
        torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(batch), torch.stack(slopes))
        _, along = torch.func.jvp(loss, (x,), (y,))
        torch.testing.assert_close(along, (slopes[0] * y).sum())
        second = torch.autograd.functional.hessian(truth, x)
        torch.testing.assert_close(torch.func.hessian(loss)(x), second)
    return "right"


def two_ranks() -> str:
    """Two gloo processes with a part of the rows each, against the formula of all rows."""
    x, y, labels = problem(11, torch.float64)
    ranks = Ranks(world=2)
    try:
        for name, (_, formula) in SIMILAR.items():
            two_sets = name == "info_nce_loss"
            given = [
                {
                    "loss": name,
                    "args": [x[part], (y if two_sets else labels)[part]],
                    "keywords": {},
                    "leaves": [0],
                }
                for part in (slice(0, 7), slice(7, 11))
            ]
            found = ranks.run(2, "support.rank_functions:step", given, wait=90)
            assert all(isinstance(one, dict) for one in found), found
            leaf = x.clone().requires_grad_()
            truth = formula(leaf, y, labels, dtype=torch.float64).mean()
            (slope,) = torch.autograd.grad(truth, leaf)
            for one in found:
                torch.testing.assert_close(one["value"], truth.detach())
            # A rank's gradient is W times its share: DistributedDataParallel averages over W ranks.
            torch.testing.assert_close(torch.cat([one[0] for one in found]), 2 * slope)
    finally:
        ranks.stop()
    return "right"


def triton() -> str:
    """Right in the interpreter, or why the engine declines: then it must say so, and not fall."""
    reason = triton_engine.MISSING
    if reason is None:
        return on("triton", "chunked")
    x, _, labels = problem(24)
    for engine in ("triton", "chunked"):
        said = ""
        with pairops.engine(engine):
            try:
                pairops.ms_loss(x, labels)
            except ValueError as error:
                said = str(error)
        assert reason in said, f"{engine} says {said!r}, where {reason}"
    on("auto")
    return f"declines: {reason}"


CHECKS: dict[str, Callable[[], str]] = {
    "dense, blockwise": eager,
    "cpu": compiled_engine,
    "`torch.compile`": lambda: compiled_graph([24], dynamic=False),
    "any size": lambda: compiled_graph([24, 31, 40], dynamic=True),
    "`torch.func`": transforms,
    "2 ranks": two_ranks,
    "`triton`, `chunked`": triton,
}


def in_separate_process(name: str) -> str:
    """What the check says, or FAILED; then its output goes to stderr."""
    command = [sys.executable, "-m", "support.torch_versions", "--check", name]
    environment = {
        **os.environ,
        "PYTHONPATH": str(SUPPORT.parent),
        "TRITON_INTERPRET": str(int(CHECKS[name] is triton)),
    }
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"FAILED: {SECONDS} s"
    if ran.returncode == 0:
        return ran.stdout.splitlines()[-1]
    print(f"── {name}\n{ran.stdout}{ran.stderr}", file=sys.stderr)
    return "FAILED"


def triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m support.torch_versions", description=__doc__)
    parser.add_argument("--check", choices=CHECKS, help="run one check in this process")
    name: Any = parser.parse_args(arguments).check
    if name is not None:
        torch.manual_seed(0)
        warnings.filterwarnings("error", module="pairops")
        print(CHECKS[name]())
        return 0
    found = {name: in_separate_process(name) for name in CHECKS}
    row = {
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "Triton": triton_version(),
        **found,
    }
    for cells in (row, ["---"] * len(row), row.values()):
        print(f"| {' | '.join(cells)} |")
    return int(any(cell.startswith("FAILED") for cell in found.values()))


if __name__ == "__main__":
    sys.exit(main())
