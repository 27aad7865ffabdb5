"""The named cases of every loss: data that has broken such code before."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Case:
    x: Tensor
    labels: Tensor
    keywords: dict[str, Any] = field(default_factory=dict)  # the library's
    oracle: dict[str, Any] = field(default_factory=dict)  # the oracle's, where they differ
    y_grad: bool = True


def embeddings(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Signs times a length of their own: similarities are multiples of 2/d and none comes within
    1e-3 of a mining threshold of 0.1, in any dtype; still all different in length."""
    return torch.randn(n, d).sign().mul(0.5 + torch.rand(n, 1)).to(dtype)


def smooth(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d).to(dtype)


Maker = Callable[[Callable[..., Tensor]], Case]


def two_sets(make: Any, n: int, m: int) -> Case:
    y, ref_labels = make(m, 123), torch.randint(0, 40, (m,))
    return Case(make(n, 123), torch.randint(0, 40, (n,)), {"ref_emb": y, "ref_labels": ref_labels})


def _square(make: Any) -> Case:
    return Case(make(96, 37), torch.randint(0, 12, (96,)))


def _ragged(make: Any) -> Case:
    return two_sets(make, 252, 507)


def _one_row(make: Any) -> Case:
    return Case(make(1, 9), torch.tensor([3]))


def _no_rows(make: Any) -> Case:
    return Case(make(0, 9), torch.zeros(0, dtype=torch.int64))


def _one_row_against_many(make: Any) -> Case:
    keywords = {"ref_emb": make(40, 37), "ref_labels": torch.randint(0, 4, (40,))}
    return Case(make(1, 37), torch.tensor([2]), keywords)


def _no_references(make: Any) -> Case:
    keywords = {"ref_emb": make(0, 37), "ref_labels": torch.zeros(0, dtype=torch.int64)}
    return Case(make(20, 37), torch.randint(0, 4, (20,)), keywords)


def _one_class(make: Any) -> Case:
    return Case(make(40, 37), torch.full((40,), 7))


def _all_distinct(make: Any) -> Case:
    # Few dimensions, so that negatives are similar enough for a margin to be passed by many.
    return Case(make(40, 9), torch.randperm(40))


def _some_alone(make: Any) -> Case:
    return Case(make(60, 37), torch.cat([torch.arange(20), torch.arange(20, 24).repeat(10)]))


def _frozen_references(make: Any) -> Case:
    case = two_sets(make, 50, 333)
    return Case(case.x, case.labels, case.keywords, y_grad=False)


def _the_references_begin_with_the_anchors(make: Any) -> Case:
    x, labels = make(40, 37), torch.randint(0, 6, (40,))
    keywords = {
        "ref_emb": torch.cat([x, make(33, 37)]),
        "ref_labels": torch.cat([labels, torch.randint(0, 6, (33,))]),
        "exclude_self": True,
    }
    return Case(x, labels, keywords, {"own": torch.arange(40)})


def _named_by_ids(make: Any) -> Case:
    x, labels = make(40, 37), torch.randint(0, 6, (40,))
    names = torch.randperm(80)
    keywords = {
        "ref_emb": torch.cat([make(20, 37), x.flip(0)]),
        "ref_labels": torch.cat([torch.randint(0, 6, (20,)), labels.flip(0)]),
        "ids": names[:40],
        "ref_ids": torch.cat([names[60:], names[:40].flip(0)]),
    }
    return Case(x, labels, keywords, {"own": 59 - torch.arange(40)})


def _self_pairs_kept(make: Any) -> Case:
    return Case(
        make(40, 37),
        torch.randint(0, 6, (40,)),
        {"exclude_self": False},
        {"own": torch.full((40,), -1)},
    )


def _zero_vectors(make: Any) -> Case:
    case = _square(make)
    case.x[[0, 5, 50]] = 0
    return case


def _ignored_rows(make: Any) -> Case:
    case = _square(make)
    case.labels[[0, 5, 50, 95]] = -100
    return case


def _another_ignore_index(make: Any) -> Case:
    case = two_sets(make, 150, 333)
    return Case(case.x, case.labels, {**case.keywords, "ignore_index": 3})


def _nothing_ignored(make: Any) -> Case:
    case = _ignored_rows(make)
    case.labels[1] = torch.iinfo(torch.int64).max
    return Case(case.x, case.labels, {"ignore_index": None})


def _extreme_labels(make: Any) -> Case:
    values = torch.tensor([-1, 2**62, 2**62 + 1, -(2**63), 2**63 - 1, 0])
    return Case(make(60, 37), values[torch.randint(0, 6, (60,))])


def _small_integers(make: Any) -> Case:
    return Case(make(60, 37), torch.randint(0, 6, (60,), dtype=torch.uint8))


def _non_contiguous(make: Any) -> Case:
    return Case(make(37, 96).T.contiguous().T.T, torch.randint(0, 12, (192,))[::2])


def _one_dimension(make: Any) -> Case:
    # As cosines these would be ±1, and all gradients rounding errors.
    return Case(make(30, 1), torch.randint(0, 4, (30,)), {"distance": "dot"})


def _dot_products(make: Any) -> Case:
    return Case(make(50, 37) / 6, torch.randint(0, 8, (50,)), {"distance": "dot"})


def separated(case: Case) -> Case:
    """The case with one feature per class more, so that no negative is as similar as a positive.

    Half a sign apart: of `embeddings`, similarities of negatives are then multiples of 2/(d + ½)
    below or above those of positives by at least half of that.
    """
    other = case.keywords.get("ref_labels")
    both = case.labels.long() if other is None else torch.cat([case.labels.long(), other.long()])
    if not len(both):
        return case
    classes, index = both.unique(return_inverse=True)

    def widened(x: Tensor, index: Tensor) -> Tensor:
        length = x.abs().amax(1, keepdim=True) if x.numel() else x.new_zeros(len(x), 1)
        marks = torch.nn.functional.one_hot(index, len(classes)).to(x.dtype) * 0.5**0.5
        return torch.cat([x, marks * length], 1)

    n = len(case.x)
    keywords = dict(case.keywords)
    x = widened(case.x, index[:n])
    if other is not None:
        same = keywords["ref_emb"] is case.x
        keywords["ref_emb"] = x if same else widened(keywords["ref_emb"], index[n:])
    return Case(x, case.labels, keywords, case.oracle, case.y_grad)


def turned(case: Case) -> Case:
    """The case in other coordinates, if its numbers have more than 16 bits.

    All numbers of unit `embeddings` have one size, and so one rounding, common to all pairs: an
    error is then a single draw, and says little of how it is computed. 16 bits do not hold other
    coordinates so exactly that similarities stay away from a threshold.
    """
    x, d = case.x, case.x.shape[1]
    if x.dtype.itemsize == 2:
        return case
    generator = torch.Generator().manual_seed(d)
    square = torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu")
    turn = torch.linalg.qr(square).Q.to(x.device)
    keywords = dict(case.keywords)
    if "ref_emb" in keywords:
        keywords["ref_emb"] = (keywords["ref_emb"].double() @ turn).to(x.dtype)
    return Case((x.double() @ turn).to(x.dtype), case.labels, keywords, case.oracle, case.y_grad)


def smaller(case: Case, n: int = 60, m: int = 90, d: int = 123) -> Case:
    """The case with at most n anchors, m references and d features."""
    keywords = {
        name: value[:m] if name in ("ref_emb", "ref_labels", "ref_ids") else value
        for name, value in case.keywords.items()
    }
    if "ids" in keywords:
        keywords["ids"] = keywords["ids"][:n]
    x = case.x[:n]
    if x.shape[1] > d:
        x = x[:, :d].contiguous()
        if "ref_emb" in keywords:
            keywords["ref_emb"] = keywords["ref_emb"][:, :d].contiguous()
    return Case(x, case.labels[:n], keywords, case.oracle, case.y_grad)


CASES: dict[str, Maker] = {
    name.removeprefix("_"): maker
    for name, maker in list(globals().items())
    if callable(maker) and name.startswith("_") and not name.startswith("__")
}
