"""Sorting, intervals and scales, in the extension and in torch, against their definition."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pairops import Pairs
from pairops.ops.bindings import extension
from pairops.ops.pairs import by_label
from pairops.ops.pairs.similarity import apply_scale, constant_inverse_norm, inverse_norm
from support.on_cpu import device as device

LEAST, MOST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
labels_of = st.lists(st.sampled_from([0, 1, 2, -100, 255, 256, -1, LEAST, MOST, 1 << 40]))


@pytest.fixture(params=["at once", "extension", "torch"], scope="module", autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """The extension is called by eager calls at once, and by the op that others need."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "at once":
            patch.setattr(by_label, "followed_by_autograd_alone", lambda *_: False)
        if request.param == "torch":
            patch.setattr(extension, "serves", lambda _: False)
        yield


def check(pairs: Pairs, x: list[int], y: list[int], ignored: int | None) -> None:
    known = pairs.relation
    sides = (x, known.permutation_x, known.valid_x), (y, known.permutation_y, known.valid_y)
    for values, order, keep in sides:
        assert sorted(order.tolist()) == list(range(len(values)))
        assert keep.tolist() == [value != ignored for value in values]
        assert keep[order].tolist() == sorted(keep.tolist(), reverse=True), "ignored rows come last"
    permutation_y = pairs.relation.permutation_y.tolist()
    counts = [0 if value == ignored else y.count(value) - (pairs.y is None) for value in x]
    assert pairs.positives().tolist() == counts, "a row is no positive of itself"
    for place, row in enumerate(pairs.relation.permutation_x.tolist()):
        found = permutation_y[pairs.relation.pos_begin[place] : pairs.relation.pos_end[place]]
        assert found == [j for j, value in enumerate(y) if value == x[row]], "stable, and complete"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=labels_of, y=labels_of, ignored=st.sampled_from([-100, None, 0, MOST]))
def test_positives_are_the_places_with_the_same_label(
    x: list[int], y: list[int], ignored: int | None
) -> None:
    rows, others = torch.randn(len(x), 3), torch.randn(len(y), 3)
    labels = torch.tensor(x, dtype=torch.int64)
    check(Pairs.of(rows, labels, ignore_index=ignored), x, x, ignored)
    ref = {"ref_emb": others, "ref_labels": torch.tensor(y, dtype=torch.int64)}
    check(Pairs.of(rows, labels, ignore_index=ignored, **ref), x, y, ignored)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(both=st.lists(st.tuples(*[st.integers(0, 3)] * 2)), more=st.lists(st.integers(0, 3)))
def test_counts_are_those_of_the_pairs(both: list[tuple[int, int]], more: list[int]) -> None:
    """Reference i is anchor i and no pair of it, whatever their classes; class 3 is ignored."""
    x, y = [a for a, _ in both], [b for _, b in both] + more
    labels, ref_labels = (torch.tensor(z, dtype=torch.int64) for z in (x, y))
    ref = {"ref_emb": torch.randn(len(y), 3), "ref_labels": ref_labels}
    pairs = Pairs.of(torch.randn(len(x), 3), labels, exclude_self=True, ignore_index=3, **ref)
    others = [[b for j, b in enumerate(y) if j != i and 3 not in (a, b)] for i, a in enumerate(x)]
    positives = [near.count(a) for a, near in zip(x, others, strict=True)]
    negatives = [len(near) - k for k, near in zip(positives, others, strict=True)]
    assert [counts.tolist() for counts in pairs.counts()] == [positives, negatives]


@pytest.mark.parametrize("n", [0, 1, 300])
def test_pairs_by_index(n: int) -> None:
    pairs, places = Pairs.paired(torch.randn(n, 3), torch.randn(n, 3)), list(range(n))
    for found in (
        pairs.relation.permutation_x,
        pairs.relation.permutation_y,
        pairs.relation.pos_begin,
    ):
        assert found.tolist() == places
    assert pairs.relation.pos_end.tolist() == [i + 1 for i in places]
    assert pairs.relation.self_index.tolist() == [-1] * n
    assert bool(pairs.relation.valid_x.all() & pairs.relation.valid_y.all())


@pytest.mark.parametrize("d", [1, 7, 64, 129])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scales_are_inverse_norms(dtype: torch.dtype, d: int) -> None:
    x = torch.randn(2100, d).to(dtype)
    x[3], x[5] = 0, 5e-13
    x[7] = torch.nan
    labels = torch.arange(2100) % 5
    labels[11] = -100
    wide: Tensor = x.double()
    norm = (wide * wide).sum(1).sqrt()
    truth = torch.where(norm < 1e-12, 0.0, 1 / norm)
    truth[11] = 0
    for rows in (x, x.T.contiguous().T):
        scale = Pairs.of(rows, labels).scales.x
        torch.testing.assert_close(scale, truth, rtol=1e-14, atol=0, equal_nan=True)
    assert Pairs.of(x, labels, distance="dot").scales.x is None


def test_a_scale_is_the_same_with_a_gradient() -> None:
    x = torch.randn(40, 7) * torch.logspace(-15, 3, 40)[:, None]
    torch.testing.assert_close(inverse_norm(x), constant_inverse_norm(x), rtol=1e-14, atol=0)


def test_a_scale_counts_beyond_its_rounding() -> None:
    """Roundings of elements average out; that of a scale, of 1/64 up to 2⁻²⁴, its row shares."""
    x = torch.randn(500, 4096)
    rows = apply_scale(x, inverse_norm(x), torch.float32)
    assert float((rows.double().norm(dim=1) - 1).abs().max()) < 0.75 * 2**-24
