"""Area "functions": pair functions of one's own, whatever they are called, copied and pickled."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import pairops
from fuzz.relations import alike

IMPORTS = ["from fuzz.functions import by_hand, elsewhere"]
NAMES = [
    "", "mine", "2nd", "ﬁt", "x²", "é", "a b", "lambda", "if", "affine", "relu", "exp", "s", "1",
    "value", "tl", "_", "my-name", "名", "total", "lse",
]  # fmt: skip
WENT = ["as it is", "copy", "deepcopy", "pickle", "in a term"]


def square(s: Tensor) -> Tensor:
    return s * s


def pull(s: Tensor) -> Tensor:
    return (1 - s) * (1 - s)


def bent(s: Tensor, height: Tensor, centre: Tensor) -> Tensor:
    return height * torch.sigmoid(s - centre) + 0.5 * s


def steep(s: Tensor, scale: Tensor) -> Tensor:
    return torch.log1p(torch.exp(scale * s)) - torch.relu(s)


def square_slopes(s: Tensor) -> tuple[Tensor]:
    return (2 * s,)


def pull_slopes(s: Tensor) -> tuple[Tensor]:
    return (-2 * (1 - s),)


def bent_slopes(s: Tensor, height: Tensor, centre: Tensor) -> tuple[Tensor, ...]:
    bend = torch.sigmoid(s - centre)
    slope = height * bend * (1 - bend)
    return slope + 0.5, bend, -slope


def steep_slopes(s: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    bend = torch.sigmoid(scale * s)
    return scale * bend - torch.where(s > 0, 1.0, 0.0), s * bend


KNOWN: dict[str, tuple[Callable[..., Tensor], Callable[..., Any], int]] = {
    "square": (square, square_slopes, 0),
    "pull": (pull, pull_slopes, 0),
    "bent": (bent, bent_slopes, 2),
    "steep": (steep, steep_slopes, 1),
}


def draw(random: Random) -> list[str]:
    which, name, given = random.choice(list(KNOWN)), random.choice(NAMES), random.random() < 0.5
    if random.random() < 0.04:
        other = random.choice([k for k in KNOWN if KNOWN[k][2] == KNOWN[which][2]])
        return [*IMPORTS, f"elsewhere({which!r}, {other!r}, {name!r}, {given})"]
    gather = random.choice(["total", "lse", "lowest", "highest"])
    side, went = random.choice(["pos", "neg", "all"]), random.choice(WENT)
    engine = random.choice(["dense", "blockwise"] * 9 + ["triton", "chunked"])
    n, d = random.randint(2, 20), random.choice([3, 8])
    told = ", ".join(map(repr, (which, name, given, went, gather, side)))
    return [
        *IMPORTS,
        f"x = torch.randn({n}, {d})",
        f"labels = torch.randint(0, 4, ({n},))",
        f"by_hand({told}, x, labels, {engine!r})",
    ]


def made(which: str, name: str, given: bool) -> Any:
    value, slopes, _ = KNOWN[which]
    return pairops.Function(value, slopes if given else None, name=name)


def by_hand(
    which: str, name: str, given: bool, went: str, gather: str, side: str, x: Tensor,
    labels: Tensor, engine: str,
) -> None:  # fmt: skip
    """A statistic of a function, and its gradient, against torch over the matrix."""
    function = made(which, name, given)
    # Another of the same name, which must not be taken for it.
    pairops.Function(lambda s: 100 + 0 * s, name=name)
    count = KNOWN[which][2]
    args = [0.7 + k for k in range(count)]
    if went == "pickle":
        function = pickle.loads(pickle.dumps(function))
    elif went in ("copy", "deepcopy"):
        function = getattr(copy, went)(function)
    term = getattr(pairops, gather)(side, *args, function=function)
    if went == "in a term":
        term = copy.deepcopy(term)
    if engine in ("dense", "blockwise"):
        x = x.double()
    leaf = x.clone().requires_grad_()
    with pairops.engine(engine):
        (found,) = pairops.row_stats(pairops.Pairs.of(leaf, labels), term)
    # The gradient of what is no infinity.
    slope = _slope(found, leaf)
    twin = x.double().requires_grad_()
    truth = _statistic(which, args, gather, side, twin, labels)
    assert torch.equal(found.isinf(), truth.isinf()), "another row has no pair"
    for what, a, b in (
        ("values", found.detach().double(), truth.detach()),
        ("gradients", slope.double(), _slope(truth, twin)),
    ):
        a, b = (torch.where(z.isinf(), 0, z) for z in (a, b))
        if x.dtype == torch.float64:
            alike(what, a, b)
        else:
            assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) + 1e-5, what


def _slope(values: Tensor, leaf: Tensor) -> Tensor:
    total = torch.where(values.isinf(), 0, values).sum()
    return torch.autograd.grad(total, leaf)[0]


def _statistic(
    which: str, args: list[float], gather: str, side: str, x: Tensor, labels: Tensor
) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    f = KNOWN[which][0](unit @ unit.T, *[torch.tensor(a, dtype=x.dtype) for a in args])
    same = labels[:, None] == labels
    kept = {"pos": same, "neg": ~same, "all": same | ~same}[side].clone().fill_diagonal_(False)
    if gather == "total":
        return torch.where(kept, f, 0).sum(1)
    if gather == "lse":
        return torch.where(kept, f, -torch.inf).logsumexp(1)
    if gather == "lowest":
        return torch.where(kept, f, torch.inf).min(1).values
    return torch.where(kept, f, -torch.inf).max(1).values


def value_of(function: Any, engine: str) -> float:
    """A number of it that another process finds again."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3).sin()
    args = [0.7 + k for k in range(function.arity)]
    with pairops.engine(engine):
        pairs = pairops.Pairs.of(x, torch.arange(8) // 2)
        (found,) = pairops.row_stats(pairs, pairops.total("neg", *args, function=function))
        return float(found.sum())


READER = """
import pickle, sys, pairops
from fuzz.functions import made, value_of
which, name, given = {!r}, {!r}, {!r}
made(which, name, given)
function = pickle.loads(sys.stdin.buffer.read())
print(value_of(function, "dense"), value_of(function, "blockwise"))
"""


def elsewhere(which: str, other: str, name: str, given: bool) -> None:
    """A pickle that another process reads, in which the name is another function's."""
    function = made(which, name, given)
    expected = value_of(function, "dense")
    tests = str(Path(__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", READER.format(other, function.name, given)],
        input=pickle.dumps(function), capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
    )  # fmt: skip
    assert not found.returncode, found.stderr.decode()[-600:]
    for value in map(float, found.stdout.split()):
        assert abs(value - expected) < 1e-9, f"{value} there, {expected} here"
