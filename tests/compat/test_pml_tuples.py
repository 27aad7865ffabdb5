"""pairops.compat.pml with lists of all pairs, against pytorch-metric-learning in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor

from pairops.compat import pml
from support.on_cpu import device as device
from support.pml_parity import CLASSES, batch, build, result

Tuple = tuple[Tensor, ...]
LISTS = [name for name in CLASSES if getattr(pml, name).lists]


def divided(positive: Tensor, out: Tensor | None = None) -> Tuple:
    """All pairs but those that are left out, as positives and negatives."""
    out = torch.zeros_like(positive) if out is None else out
    return of_masks(positive & ~out, ~positive & ~out)


def places(n: int, m: int) -> Tensor:
    """The references that two of three anchors are."""
    return torch.eye(n, m).roll(5, 1).bool() & (torch.arange(n) % 3 > 0)[:, None]


def of_masks(positive: Tensor, negative: Tensor) -> Tuple:
    """In no order."""
    found: list[Tensor] = []
    for mask in (positive, negative):
        pairs = mask.nonzero()
        found += pairs[torch.randperm(len(pairs))].unbind(1)
    return tuple(found)


def some(n: int, m: int) -> Tensor:
    return torch.rand(n, m) < 0.2


def itself(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool)


# By name: pairs of 24 anchors with themselves, or with 31 references.
ALL_PAIRS: dict[str, tuple[int, Callable[[Tensor], Tuple]]] = {
    "what labels say": (0, loss_and_miner_utils.get_all_pairs_indices),
    "a directed list": (0, lambda _: divided(some(24, 24), itself(24))),
    "a row is a negative of itself": (0, lambda _: divided(some(24, 24) & ~itself(24))),
    "a row is a positive of itself": (0, lambda _: divided(some(24, 24) | itself(24))),
    "references": (31, lambda _: divided(some(24, 31))),
    "references that some anchors are": (31, lambda _: divided(some(24, 31), places(24, 31))),
    "no positives": (0, lambda _: divided(some(24, 24) & False, itself(24))),
}  # fmt: skip


def agree(loss: Any, *given: Any) -> None:
    rtol = 1e-7 if isinstance(loss, losses.CircleLoss) else 1e-9
    for ours, theirs in zip(result(pml.convert(loss), *given), result(loss, *given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 100)


@pytest.mark.parametrize("case", ALL_PAIRS)
@pytest.mark.parametrize("name", LISTS)
def test_has_its_numbers(name: str, case: str) -> None:
    m, make = ALL_PAIRS[case]
    x, labels = batch()
    if case == "no positives" and not build(name)(x, labels, make(labels)).requires_grad:
        assert pml.convert(build(name))(x, labels, make(labels)) == 0
        return
    refs = batch(m) if m else ()
    agree(build(name), x, labels, make(labels), *refs)


@pytest.mark.parametrize("reducer", [reducers.MeanReducer, reducers.SumReducer])
@pytest.mark.parametrize("name", LISTS)
def test_reducers(name: str, reducer: Callable[[], Any]) -> None:
    x, labels = batch()
    _, make = ALL_PAIRS["a directed list"]
    agree(build(name, reducer=reducer()), x, labels, make(labels))


def test_labels_are_not_needed() -> None:
    (x, _), (_, make) = batch(), ALL_PAIRS["a directed list"]
    agree(build("SupConLoss"), x, None, make(x))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", LISTS)
def test_small_batches(name: str, n: int) -> None:
    x = batch(n)[0]
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[-1, 0] = n > 1
    given = of_masks(mask, ~mask & ~itself(n))
    ours, theirs = (each(x, None, given) for each in (pml.convert(build(name)), build(name)))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted({*LISTS} - {"MarginLoss"}))
def test_its_cross_batch_memory(name: str) -> None:
    """It lists all pairs with the memory, but for those of a row with itself."""
    theirs, ours = (
        losses.CrossBatchMemory(loss, 8, memory_size=40)
        for loss in (build(name), pml.convert(build(name)))
    )
    for _ in range(4):
        x, labels = batch(16)
        for found, expected in zip(*(result(m, x, labels) for m in (ours, theirs)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def refused(case: str) -> tuple[Any, ...]:
    x, labels = batch()
    whole = loss_and_miner_utils.get_all_pairs_indices(labels)
    a, p, b, q = whole
    lacking = torch.ones(24, 24, dtype=torch.bool)
    lacking[0, 1:3] = False
    return {
        "triplets": ((a, p, p), "is 3 entries"),
        "what a miner finds": (miners.MultiSimilarityMiner()(x, labels), "has .* pairs of 24 · 24"),
        "a pair twice": ((a[:-1], p[:-1], torch.cat([b, b[:1]]), torch.cat([q, q[:1]])), "twice"),
        "a side that is too short": ((a, p[1:], b, q), "has .* pairs"),
        "out of range": ((a, p + 24 * (a == a[0]), b, q), "rows that there are not"),
        "two of a row are missing": (of_masks(itself(24), lacking & ~itself(24)), "lacks several"),
        "numbers": ([1, 2, 3, 4], "is int"),
        "floats": ((a, p, b.float(), q), "float"),
        "matrices": ((a, p, b[None], q), r"has an entry \(1, "),
        "a tensor": (a, "is a Tensor"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "triplets", "what a miner finds", "a pair twice", "a side that is too short",
        "out of range", "two of a row are missing", "numbers", "floats",
        "matrices", "a tensor",
    ],
)  # fmt: skip
def test_what_is_refused(case: str) -> None:
    given, says = refused(case)
    with pytest.raises((ValueError, TypeError), match=f"indices_tuple .*{says}"):
        pml.convert(build("SupConLoss"))(*batch(), given)


@pytest.mark.parametrize("name", sorted({*CLASSES} - {*LISTS}))
def test_losses_that_take_no_list(name: str) -> None:
    """As weights of anchors, or of two rows of each class, a list is another loss."""
    x, labels = batch()
    with pytest.raises(ValueError, match=f"indices_tuple is given; for {name} it must be None"):
        pml.convert(build(name))(x, labels, loss_and_miner_utils.get_all_pairs_indices(labels))


def test_a_beta_per_class_and_a_list() -> None:
    x, labels = batch()
    loss = pml.convert(losses.MarginLoss(num_classes=40, learn_beta=True))
    with pytest.raises(ValueError, match="beta has 40 entries, one for each class; with a list"):
        loss(x, labels, loss_and_miner_utils.get_all_pairs_indices(labels))


def test_a_miner_and_a_list() -> None:
    x, labels = batch()
    mined = pml.convert(build("MultiSimilarityLoss"), miners.MultiSimilarityMiner())
    with pytest.raises(ValueError, match="for MultiSimilarityLoss with a miner it must be None"):
        mined(x, labels, loss_and_miner_utils.get_all_pairs_indices(labels))
