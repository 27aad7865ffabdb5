"""On every engine for GPUs: rows that do not count, are not finite, or weigh little, beside others.

Embeddings have 16 bits, where kernels go short ways: softmaxes without a maximum, weights in units.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from pairops import ALL, NEG, POS, Pairs, Term, lse, total
from pairops.ops import engines
from pairops.ops.engines import blockwise_engine as blockwise
from pairops.ops.terms.functions import softplus
from pairops.ops.terms.term import Wanted

pytest.importorskip("triton")


def gradient(
    engine: Any, pairs: Pairs, term: Term, cotangent: Tensor, *, both: bool = True
) -> tuple[Tensor, ...]:
    """The statistics, and the gradients by x and y."""
    wide = torch.float64 if pairs.x.dtype == torch.float64 else torch.float32
    of = term.over(*pairs.shape, wide)
    found, _, masks = engine.forward(pairs, [of], [])
    given, needs = [cotangent.to(wide)], Wanted(True, both, rounded=False)
    with torch.no_grad():
        dx, dy, _ = engine.backward(pairs, [of], [], found, given, masks, needs)
    return found[0], dx, dy


@pytest.fixture
def engine(gpu_engine: str) -> Any:
    return engines.ENGINES[gpu_engine]


def test_owners_without_partners_have_an_empty_side(engine: Any) -> None:
    x, none = torch.randn(20, 8).bfloat16(), torch.zeros(0, 8).bfloat16()
    pairs = Pairs.of(x, torch.arange(20), ref_emb=none, ref_labels=torch.arange(0))
    found, _, _ = engine.forward(pairs, [lse(NEG, 20.0, 0.0).over(20, 0, torch.float32)], [])
    assert bool((found[0] == -torch.inf).all())


@pytest.mark.parametrize(("scale", "base"), [(20.0, 0.0), (50.0, -2.0), (-50.0, 2.0)])
@pytest.mark.parametrize("cotangent", [1.0, float("nan")])
def test_an_empty_side_has_no_gradient(
    engine: Any, scale: float, base: float, cotangent: float
) -> None:
    """Whatever its cotangent is: a select behind the statistic makes it NaN."""
    x, labels = torch.randn(60, 16).bfloat16(), torch.arange(60) // 4
    labels[:5] = torch.arange(100, 105)
    of = torch.ones(60)
    of[:5] = cotangent
    found, dx, _ = gradient(engine, Pairs.of(x, labels), lse(POS, scale, base), of)
    assert bool((found[:5] == -torch.inf).all())
    assert bool(dx.isfinite().all())


def test_a_base_far_away_leaves_other_rows_alone(engine: Any) -> None:
    x, labels = torch.randn(60, 16).bfloat16(), torch.arange(60) // 4
    base, of = torch.zeros(60), torch.ones(60)
    base[7], of[7] = 1e9, 0.0
    _, dx, _ = gradient(engine, Pairs.of(x, labels), lse(NEG, 20.0, base), of)
    _, truth, _ = gradient(
        blockwise, Pairs.of(x.double(), labels), lse(NEG, 20.0, base.double()), of
    )
    assert float((dx - truth).norm() / truth.norm()) < 5e-3


@pytest.mark.parametrize("set_", ["x", "y"])
def test_what_an_ignored_row_holds_changes_nothing(engine: Any, set_: str) -> None:
    x, y = torch.randn(50, 16).half(), torch.randn(70, 16).half()
    labels, others = torch.randint(0, 5, (50,)), torch.randint(0, 5, (70,))
    (labels if set_ == "x" else others)[3] = -1
    large = {"x": x.clone(), "y": y.clone()}
    large[set_][3] = 60_000.0
    term, of = lse(ALL, 0.1, 0.0), torch.ones(50)
    of[3] = 0.0 if set_ == "x" else 1.0
    found = []
    for a, b in ((x, y), (large["x"], large["y"])):
        pairs = Pairs.of(a, labels, ref_emb=b, ref_labels=others, ignore_index=-1, distance="dot")
        found.append(gradient(engine, pairs, term, of))
    for before, after in zip(*found, strict=True):
        assert torch.equal(before.isfinite(), after.isfinite())
        kept = before.isfinite()
        assert float((before - after)[kept].norm()) <= 1e-3 * float(before[kept].norm())


def test_a_cotangent_that_is_not_finite_leaves_other_rows_alone(engine: Any) -> None:
    """Rows of x alone have a gradient: none is a partner."""
    x, y = torch.randn(50, 16).bfloat16(), torch.randn(70, 16).bfloat16()
    labels, others = torch.randint(0, 5, (50,)), torch.randint(0, 5, (70,))
    of = 100 * torch.ones(50)
    pairs = Pairs.of(x, labels, ref_emb=y, ref_labels=others)
    _, right, _ = gradient(engine, pairs, lse(NEG, 20.0, 0.0), of, both=False)
    of[3] = torch.inf
    _, dx, _ = gradient(engine, pairs, lse(NEG, 20.0, 0.0), of, both=False)
    rest = torch.arange(50) != 3
    assert float((dx - right)[rest].norm()) <= 1e-3 * float(right[rest].norm())


def test_weights_that_are_all_small_have_their_digits(engine: Any) -> None:
    x, labels = torch.randn(50, 16).bfloat16(), torch.randint(0, 6, (50,))
    term, of = total(NEG, 1.0, -40.0, function=softplus), torch.ones(50)
    _, dx, _ = gradient(engine, Pairs.of(x, labels), term, of)
    _, truth, _ = gradient(blockwise, Pairs.of(x.double(), labels), term, of)
    assert float((dx - truth).norm() / truth.norm()) < 5e-3
