"""The statistics that a backward sweep is given may lie anywhere, in any layout."""

import itertools

import pytest
import torch
from torch import Tensor

import pairops
from pairops import NEG, POS, Pairs, lse, total
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.terms.term import Wanted

N, TERMS = 16, 4


def placed(statistics: list[Tensor], places: tuple[int, ...], stride: int) -> list[Tensor]:
    """Copies, the k-th as number `places[k]` of one allocation."""
    room = torch.full((TERMS, N * stride), torch.nan)
    result = [room[place, ::stride] for place in places]
    for copy, z in zip(result, statistics, strict=True):
        copy.copy_(z)
    return result


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("places", list(itertools.permutations(range(TERMS))))
def test_statistics_in_any_order_in_memory(places: tuple[int, ...], stride: int) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(N, 5), torch.arange(N) // 2
    with pairops.engine("cpu"):
        pairs = Pairs.of(x, labels)
        u, v = torch.rand(2, N).unbind()
        rows = [lse(POS, -2.0, 0.0), lse(NEG, 9.0, u), total(NEG, v, 0.5), lse(POS, 3.0, 0.0)]
        terms = [term.over(N, N, torch.float32) for term in rows]
        statistics, _, _ = cpu_engine.forward(pairs, terms, [])
        cotangents = [torch.randn(N) for _ in terms]

        def gradients(given: list[Tensor]) -> list[Tensor]:
            dx, _, by_arguments = cpu_engine.backward(
                pairs, terms, [], given, cotangents, None, Wanted(True, False)
            )
            return [dx, *by_arguments]

        truth = gradients([z.clone() for z in statistics])
        found = gradients(placed(list(statistics), places, stride))
    for ours, one in zip(found, truth, strict=True):
        assert torch.equal(ours, one)
