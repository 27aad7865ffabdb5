"""Labels and ids of 64 bits and other unsigned types are compared as the numbers that they are."""

from typing import Any

import pytest
import torch

import pairops
from pairops import Pairs

# What int64 takes for −1, −100 and its least number, beside these numbers of other types.
HUGE = [2**64 - 1, 2**64 - 100, 2**63, 2**63 - 1, 5, 0]
SMALL = [-1, -100, -(2**63), 2**63 - 1, 5, 0]


def counted(
    labels: list[int], dtype: torch.dtype, others: list[int], other_dtype: torch.dtype, **kw: Any
) -> tuple[list[int], list[int]]:
    ref = {"ref_emb": torch.randn(len(others), 3)}
    ref["ref_labels"] = torch.tensor(others, dtype=other_dtype)
    pairs = Pairs.of(torch.randn(len(labels), 3), torch.tensor(labels, dtype=dtype), **ref, **kw)
    positives, negatives = pairs.counts()
    return positives.tolist(), negatives.tolist()


@pytest.mark.parametrize("ignored", [-100, None, 5, 2**64 - 100, 2**63, -1, 2**63 - 1])
@pytest.mark.parametrize("first", [torch.uint64, torch.int64])
@pytest.mark.parametrize("second", [torch.uint64, torch.int64])
def test_labels_of_64_bits_with_and_without_a_sign(
    first: torch.dtype, second: torch.dtype, ignored: int | None
) -> None:
    numbers = {torch.uint64: HUGE, torch.int64: SMALL}
    x, y = numbers[first] + numbers[first][:3], numbers[second] * 2
    if torch.uint64 not in (first, second) and ignored is not None and ignored >= 2**63:
        with pytest.raises(ValueError, match=r"must be below 2\*\*63, since labels are"):
            counted(x, first, y, second, ignore_index=ignored)
        return
    found = counted(x, first, y, second, ignore_index=ignored)
    kept = [b for b in y if b != ignored]
    positives = [0 if a == ignored else kept.count(a) for a in x]
    negatives = [0 if a == ignored else len(kept) - kept.count(a) for a in x]
    assert found == (positives, negatives)
    if first == second:
        one = Pairs.of(
            torch.randn(len(x), 3), torch.tensor(x, dtype=first), ignore_index=ignored
        ).counts()[0]
        assert one.tolist() == [0 if a == ignored else x.count(a) - 1 for a in x]


@pytest.mark.parametrize("first", [torch.uint64, torch.int64])
@pytest.mark.parametrize("second", [torch.uint64, torch.int64])
def test_ids_of_64_bits_with_and_without_a_sign(first: torch.dtype, second: torch.dtype) -> None:
    numbers = {torch.uint64: HUGE, torch.int64: SMALL}
    ids, ref_ids = numbers[first], numbers[second][::-1]
    pairs = Pairs.of(
        torch.randn(6, 3),
        torch.zeros(6, dtype=torch.int64),
        ref_emb=torch.randn(6, 3),
        ref_labels=torch.zeros(6, dtype=torch.int64),
        ids=torch.tensor(ids, dtype=first),
        ref_ids=torch.tensor(ref_ids, dtype=second),
    )
    assert pairs.positives().tolist() == [5 if name in ref_ids else 6 for name in ids]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint8])
def test_small_labels_without_a_sign_are_none_of_the_negative_ones(dtype: torch.dtype) -> None:
    most = torch.iinfo(dtype).max
    found = counted([most, most - 99, 3], dtype, [-1, -100, 3, most], torch.int64)
    assert found == ([1, 0, 1], [2, 3, 2])


def test_a_class_beyond_int64_is_none_of_the_first() -> None:
    x, labels = torch.randn(3, 4), torch.tensor([0, 1, 2**64 - 100], dtype=torch.uint64)
    with pytest.raises(ValueError, match="labels go from 0 to 9223372036854775807 and beta has 4"):
        pairops.margin_loss(x, labels, beta=torch.rand(4))
    with pytest.raises(ValueError, match="labels go from 0 to 9223372036854775807 and without"):
        pairops.proxy_nca_loss(x, labels, torch.randn(4, 4))
    for ignored in ({"ignore_index": 2**64 - 100},):
        small = torch.tensor([0, 1, -100])
        for name, rest, more in (
            ("margin_loss", (), {"beta": torch.arange(4) / 4}),
            ("proxy_nca_loss", (torch.eye(4),), {}),
        ):
            loss = getattr(pairops, name)
            expected = loss(x, small, *rest, **more)
            torch.testing.assert_close(loss(x, labels, *rest, **more, **ignored), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32])
def test_classes_of_a_table_may_have_no_sign(dtype: torch.dtype) -> None:
    x, y, classes = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    relevance = torch.rand(3, 3)
    expected, found = (
        pairops.sms_loss(x, y, relevance=relevance, x_classes=a, y_classes=b)
        for a, b in ((classes, classes.flip(0)), (classes.to(dtype), classes.flip(0).to(dtype)))
    )
    torch.testing.assert_close(found, expected)


def test_no_table_has_a_row_for_a_hash() -> None:
    x, classes = torch.randn(2, 3), torch.arange(2)
    for at in ("x_classes", "y_classes"):
        given = {"x_classes": classes, "y_classes": classes} | {at: classes.to(torch.uint64)}
        with pytest.raises(TypeError, match=rf"{at} is torch.uint64.*write {at}.long\(\)"):
            pairops.sms_loss(x, x, relevance=torch.rand(3, 3), **given)


def test_a_memory_keeps_numbers_that_int64_holds() -> None:
    memory = pairops.CrossBatchMemory(pairops.supcon_loss, 3, 8)
    x, labels = torch.randn(2, 3), torch.tensor([2**63, 1], dtype=torch.uint64)
    for given, name in (({}, "labels"), ({"ids": labels}, "ids")):
        mine = labels if name == "labels" else torch.arange(2)
        with pytest.raises(ValueError, match=f"{name} is uint64 and holds a number of 2.*view"):
            memory(x, mine, **given)
    memory(x, torch.tensor([5, 1], dtype=torch.uint64))
    assert memory.labels[:2].tolist() == [5, 1]
