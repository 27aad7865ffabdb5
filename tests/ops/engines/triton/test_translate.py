"""Functions of one's own on Triton: what torch traces is what the kernel computes."""

import functools
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pairops
from pairops import NEG, Function, Pairs, highest, lse, row_stats, total
from pairops.ops.engines.triton import translate
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms import functions
from pairops.ops.terms.functions import FUNCTIONS
from support.engine_names import TRITON
from support.error_rule import Dense, assert_within_rule
from support.exhaustive import exhaustive_but
from support.project import EXAMPLES, ROOT
from support.term_problems import problem

VALUES: dict[str, Callable[..., Any]] = {
    "arithmetic": lambda s: (2 * s - 1) / (3 - s) + 0.5 * -s - 1 / (s + 2),
    "reversed": lambda s: 1 - s + torch.rsub(s, 3, alpha=2) + torch.add(s, s, alpha=0.5),
    "powers": lambda s: (
        s**2
        + s**3
        - s**-2
        + (s + 2) ** 0.5
        + s**0
        + (s + 2) ** 1.7
        + s**9
        + s**10
        + (s + 2) ** -1.5
        + (s + 2) ** 9
    ),
    "exponentials": lambda s: torch.exp(s) + torch.expm1(s) + torch.exp2(s) + s.exp().log(),
    "logarithms": lambda s: torch.log(s + 1.5) + torch.log1p(s / 2) + torch.log(s * s + 1),
    "small_logarithms": lambda s: (
        torch.log1p(1e-4 * s) + torch.expm1(1e-4 * s) + torch.tanh(1e-3 * s)
    ),
    "roots": lambda s: torch.sqrt(s + 2) + torch.rsqrt(s + 2) + s.abs().sqrt(),
    "bends": lambda s: torch.relu(s) + s.clamp(min=-0.2) + s.clamp(max=0.3) + s.clamp(-0.1, 0.1),
    "choices": lambda s: torch.where(s > 0.1, s, -s) + torch.where((s > 0) & ~(s > 0.2), 1.0, 0.0),
    "comparisons": lambda s: (s > 0) * s + (s <= 0.1) * 2 + ((s >= 0) | (s < -0.3)) + (s != 0.5),
    "extremes": lambda s: torch.maximum(s, s * s) + torch.minimum(s, 1 - s),
    "squashes": lambda s: (
        torch.sigmoid(3 * s) + torch.tanh(2 * s) + torch.erf(s) + torch.sign(s) * s
    ),
    "waves": lambda s: torch.sin(3 * s) + torch.cos(s),
    "library": lambda s: F.softplus(s) + F.logsigmoid(s) + F.silu(s) + F.relu6(s) + F.hardtanh(s),
    "held": lambda s: torch.relu(s + 0.25).detach() * (s - 0.25),
    "full": lambda s: torch.full_like(s, 2.0) + torch.zeros_like(s) + torch.ones_like(s) * s,
}
PAIR_FUNCTIONS = {name: Function(value, name=f"test_{name}") for name, value in VALUES.items()}


@pytest.mark.parametrize(
    ("name", "engine"),
    exhaustive_but(
        itertools.product(VALUES, TRITON),
        lambda name, engine: engine == "triton" or name == "library",
    ),
)
def test_values_and_derived_slopes(name: str, engine: str) -> None:
    x, labels, _ = problem(n=40, d=6)

    def run(which: str, dtype: torch.dtype) -> list[Tensor]:
        mine, found = x.float().to(dtype).requires_grad_(), []
        with pairops.engine(which):
            terms = [t(NEG, function=PAIR_FUNCTIONS[name]) for t in (total, lse, highest)]
            for r in row_stats(Pairs.of(mine, labels), *terms):
                gradient = torch.autograd.grad(
                    (r * torch.linspace(-1, 2, 40)).sum(), mine, retain_graph=True
                )
                found += [r.detach(), *gradient]
        return found

    dense = Dense(lambda: run("dense", torch.float32))
    pairs = zip(run(engine, torch.float32), run("dense", torch.float64), strict=True)
    for k, (ours, truth) in enumerate(pairs):
        assert_within_rule(f"{name}: result {k}", ours, dense.result(k), truth)


@pytest.mark.parametrize("engine", TRITON)
def test_given_slopes_and_arguments(engine: str) -> None:
    """A slope that is declared not to be the derivative is taken as it is."""
    held = Function(
        lambda s, a: a * (1 + s) * s,
        lambda s, a: (a * (1 + s), (1 + s) * s),
        name="held_for_triton",
        is_derivative=False,
    )
    x, labels, _ = problem(n=40, d=6)
    found = []
    for which, dtype in ((engine, torch.float32), ("dense", torch.float64)):
        mine, a = x.to(dtype).requires_grad_(), torch.tensor(1.5, dtype=dtype, requires_grad=True)
        with pairops.engine(which):
            (r,) = row_stats(Pairs.of(mine, labels), lse(NEG, a, function=held))
            found.append((r, *torch.autograd.grad(r.sum(), (mine, a))))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=2e-5, atol=1e-5)


def test_what_cannot_be_translated_is_named() -> None:
    cases = {
        "whole numbers": (
            Function(lambda s: s + (10 * s).int(), lambda s: (s**0,), name="ints"),
            "aten._to_copy",
        ),
        "a truth that is added": (lambda s: s + ((s > 0) + (s > 1)), "aten.add"),
        "is it pointwise": (lambda s: torch.cumsum(s, 0), "uses aten.cumsum.default"),
        "a constant of many": (lambda s: s + torch.arange(5.0), "uses aten.arange"),
        "a slope too many": (
            Function(lambda s: s, lambda s: (s, s), name="two_slopes"),
            "are 2; there must be 1",
        ),
    }
    for name, (value, reason) in cases.items():
        function = value if isinstance(value, Function) else Function(value, name=f"cannot_{name}")
        told = translate.reason_against(function.name)
        assert told is not None
        assert reason in told, name
        assert function.name in told


def test_every_function_of_the_library_is_translated() -> None:
    for name in functions.__all__:
        if name not in FUNCTIONS:
            continue  # a name of the module that is no function's
        assert translate.reason_against(name) is None


@pytest.fixture
def own_loss(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES / "own_loss")
    return importlib.import_module("own_loss")


@pytest.mark.parametrize("engine", ["blockwise", "dense", *TRITON])
def test_the_documented_loss_equals_its_naive_version(own_loss: Any, engine: str) -> None:
    """The one of docs/losses.md, word for word; a second derivative too."""
    document = (ROOT / "docs/losses.md").read_text()
    example = (EXAMPLES / "own_loss/own_loss.py").read_text()
    begin = example.index("pull = Function")
    assert example[begin : example.index("\n\n\ndef naive")] in document
    x, labels = torch.randn(90, 17, requires_grad=True), torch.arange(90) // 4
    with pairops.engine(engine):
        ours = own_loss.squared_contrastive(x, labels)
        (gradient,) = torch.autograd.grad(ours, x, create_graph=True)
        (second,) = torch.autograd.grad((gradient**2).sum(), x)
    y = x.detach().double().requires_grad_()
    truth = own_loss.naive(y, labels)
    (expected,) = torch.autograd.grad(truth, y, create_graph=True)
    (then,) = torch.autograd.grad((expected**2).sum(), y)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=0)
    for found, wanted in ((gradient, expected), (second, then)):
        error = (found.double() - wanted).abs().max() / wanted.abs().max()
        assert float(error.detach()) < 2e-6


def test_the_example_says_who_serves(own_loss: Any, capsys: pytest.CaptureFixture[str]) -> None:
    own_loss.main()
    printed = capsys.readouterr().out
    assert "cpu        engine 'cpu' cannot serve this call" in printed
    assert "gradients differ by" in printed


@pytest.mark.parametrize("engine", ["blockwise", "triton"])
def test_a_function_of_one_s_own_compiles_in_one_graph(own_loss: Any, engine: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(own_loss.squared_contrastive, fullgraph=True, backend="aot_eager")
    x, labels = torch.randn(30, 7, requires_grad=True), torch.arange(30) // 4
    with pairops.engine(engine):
        eager, ours = own_loss.squared_contrastive(x, labels), compiled(x, labels)
        gradients = [torch.autograd.grad(value, x)[0] for value in (eager, ours)]
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(*gradients)


def test_pair_loss_takes_what_every_loss_takes() -> None:
    """ms_loss without mining is a pair_loss."""
    from pairops import POS

    x, labels = torch.randn(60, 9, requires_grad=True), torch.randint(0, 6, (60,))
    labels[[3, 30]] = -100
    weight = torch.rand(60)
    loss = functools.partial(
        pairops.pair_loss,
        x,
        labels,
        lse(POS, -2.0, 0.5),
        lse(NEG, 50.0, 0.5),
        combine=lambda pos, neg: log1p_exp(pos) / 2 + log1p_exp(neg) / 50,
    )
    for reduction in ("mean", "mean_nonzero", "sum", "none"):
        ours = loss(weight=weight, reduction=reduction)
        theirs = pairops.ms_loss(x, labels, epsilon=None, weight=weight, reduction=reduction)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs)  # 1/50 is rounded, and x/50 once


@pytest.mark.parametrize(
    ("terms", "combine", "message"),
    [
        ([], torch.add, "terms are nothing; they must be one or more pairops.Term"),
        (["lse"], torch.add, "terms are str; they must be"),
        (
            [total(NEG, 1.0, 0.0)],
            lambda r: r.sum(),
            r"combine returned \(\); it must return a tensor \(6,\)",
        ),
        ([total(NEG, 1.0, 0.0)], lambda r: 1.0, "combine returned float; it must return"),  # noqa: ARG005
    ],
)
def test_pair_loss_given_something_else(terms: Any, combine: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pairops.pair_loss(torch.randn(6, 3), torch.arange(6), *terms, combine=combine)
