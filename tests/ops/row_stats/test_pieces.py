"""What the compiled mean makes of each piece of a loss, against the same in torch."""

import itertools
import math
from typing import Any
from unittest import mock

import pytest
import torch

from pairops.ops.bindings import extension
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats import pieces
from pairops.ops.terms.term import POS, lse
from support.exhaustive import exhaustive_but
from support.on_cpu import device as device

if extension.native is None:
    pytest.skip("this build has no kernels for the CPU", allow_module_level=True)

SPECIAL = [-math.inf, math.inf, math.nan, 0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 1e30, -1e30]


@pytest.mark.parametrize(
    ("positives", "wide"),
    exhaustive_but(
        itertools.product([0, 1, 5], [True, False]), lambda positives, wide: positives == 5 and wide
    ),
)
@pytest.mark.parametrize(
    "shape", ["log1p_exp", "log1p_exp, of one", "hinge", "linear", "mean", "less_mean"]
)
def test_every_piece(shape: str, positives: int, wide: bool) -> None:
    """Losses and slopes, of all pairs of special numbers and of random ones."""
    dtype = torch.float64 if wide else torch.float32
    given = torch.cat([torch.tensor(SPECIAL, dtype=dtype), 30 * torch.randn(20, dtype=dtype)])
    plus, minus = [z.flatten() for z in torch.meshgrid(given, given, indexing="ij")]
    one, other = lse(POS, 1.0, 0.0), lse(POS, 1.0, 0.0)
    made = {
        "log1p_exp": pieces.softplus_of(one, other, offset=0.25, weight=0.5),
        "log1p_exp, of one": pieces.softplus_of(one, weight=2.0),
        "hinge": pieces.hinge_of(one, other, offset=-0.5),
        "linear": pieces.linear(one),
        "mean": pieces.mean_over_positives(one),
        "less_mean": pieces.less_mean(one, other),
    }[shape]
    count = torch.full((1,), positives)
    name, place = made.shape, -1 if made.minus is None else 1
    told = [(name, 0, place, float(made.offset), float(made.weight))]
    pairs = mock.Mock(spec=Pairs, positives=lambda: count)
    for k in range(len(plus)):
        both = torch.stack([plus[k], minus[k]]).double().requires_grad_()
        by_term = {one: both[:1], other: both[1:]}
        truth = pieces.losses_of([made], by_term, pairs).mean()
        (slopes,) = torch.autograd.grad(truth, both, allow_unused=True)
        mean, found = cpu_engine.mean(told, 1, both.detach().to(dtype), count)
        where = f"{shape} of {float(plus[k])} and {float(minus[k])}"
        close = {"rtol": 1e-6 if dtype == torch.float32 else 1e-13, "equal_nan": True}
        for ours, theirs in ((mean, truth.detach()), (found, slopes)):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), theirs, atol=1e-37, msg=where, **close)


def test_pieces_add_up() -> None:
    """Of several anchors, in which a statistic serves twice."""
    n = 50
    a, b, c = terms = [lse(POS, 1.0, 0.0) for _ in range(3)]
    statistics = torch.randn(3, n, dtype=torch.float64, requires_grad=True)
    made = [
        pieces.softplus_of(a, b, weight=0.5), pieces.less_mean(b, c), pieces.linear(c),
        pieces.hinge_of(c, a, offset=0.1),
    ]  # fmt: skip
    positives = torch.randint(0, 4, (n,))
    pairs = mock.Mock(spec=Pairs, positives=lambda: positives)
    by_term = dict(zip(terms, statistics, strict=True))
    truth = pieces.losses_of(made, by_term, pairs).mean()
    (slopes,) = torch.autograd.grad(truth, statistics)
    place: dict[Any, int] = {term: k for k, term in enumerate(terms)}
    told = [(p.shape, place[p.plus], place.get(p.minus, -1), p.offset, p.weight) for p in made]
    mean, found = cpu_engine.mean(told, n, statistics.detach().flatten(), positives)
    torch.testing.assert_close(mean, truth.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.view(3, n), slopes, rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("most", [0, 3])
def test_averages_over_pairs(most: int) -> None:
    """Over the pairs that a term counts, and over all positives; 0 where there are none."""
    n = 50
    terms = [lse(POS, 1.0, 0.0) for _ in range(3)]
    counts, positives = torch.randint(0, most + 1, (2, n))
    statistics = [torch.randn(n, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    made = [pieces.per_pair(terms[0], terms[2]), pieces.per_pair(terms[1])]
    pairs = mock.Mock(spec=Pairs, positives=lambda: positives)
    values = [*statistics, counts.double()]
    truth = pieces.mean_of(made, dict(zip(terms, values, strict=True)), pairs)
    slopes = torch.cat(torch.autograd.grad(truth, statistics))
    told = [(p.shape, k, -1 if p.minus is None else 2, 0.0, 1.0) for k, p in enumerate(made)]
    mean, found = cpu_engine.mean(told, n, torch.cat(values).detach(), positives)
    torch.testing.assert_close(mean, truth.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(found[: 2 * n], slopes, rtol=1e-13, atol=1e-18)
    averages = [
        z.sum() / max(1, int(c.sum())) for z, c in zip(statistics, (counts, positives), strict=True)
    ]
    torch.testing.assert_close(truth, torch.stack(averages).sum(), rtol=1e-13, atol=1e-15)
