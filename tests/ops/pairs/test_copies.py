"""Copies of pairs, and pairs that were pickled, have memory of their own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pairops import NEG, POS, Pairs, lse, row_stats


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pairs: pickle.loads(pickle.dumps(pairs))])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("distance", ["cosine", "dot"])
def test_a_copy_is_on_its_own(copied: Callable[[Pairs], Pairs], two: bool, distance: Any) -> None:
    x, labels = torch.randn(40, 8), torch.randint(0, 8, (40,))
    given = {"ref_emb": x.flip(0), "ref_labels": labels.flip(0)} if two else {}
    terms = lse(NEG, 3.0, 0.5), lse(POS, -2.0, 0.5)
    pairs = Pairs.of(x, labels, distance=distance, **given)
    truth = row_stats(pairs, *terms)
    counts = pairs.counts()
    again = copied(pairs)
    kept = [pairs.scales.x, pairs.scales.y, *(pairs.cache.similarities or [[]])[0]]
    for z in (*pairs.relation.tensors(), *[z for z in kept if z is not None]):
        z.zero_()
    assert all(map(torch.equal, row_stats(again, *terms), truth))
    assert all(map(torch.equal, again.counts(), counts))
