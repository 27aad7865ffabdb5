"""CrossBatchMemory against a list of past batches and the naive formulas; state, ids, errors."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import pairops
from pairops import CrossBatchMemory
from support.exhaustive import exhaustive
from support.named_cases import smooth

SUPCON = functools.partial(pairops.supcon_loss, reduction="none")


def batches(sizes: list[int], classes: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x, labels, ids), where ids come again in later batches."""
    return [
        (
            smooth(n, 9, torch.float64),
            torch.randint(0, classes, (n,)),
            torch.randperm(2 * max(sizes))[:n],
        )
        for n in sizes
    ]


def memory(size: int, loss: Any = SUPCON, **options: Any) -> CrossBatchMemory:
    return CrossBatchMemory(loss, 9, size, dtype=torch.float64, **options)


class Past:
    """The last `size` rows that were enqueued, as a list, and the formula over them."""

    def __init__(self, size: int, warmup: int = 0) -> None:
        self.size, self.warmup = size, warmup
        self.rows: list[tuple[Tensor, int, int | None]] = []

    def __call__(
        self, x: Tensor, labels: Tensor, ids: Tensor | None = None, enqueue: Tensor | None = None
    ) -> Tensor:
        present = [] if ids is None else ids.tolist()
        known = [row for row in self.rows if row[2] is None or row[2] not in present]
        value = oracle.supcon_loss(
            x,
            labels,
            ref_emb=torch.cat([x, *[row.unsqueeze(0) for row, _, _ in known]]),
            ref_labels=torch.cat([labels, torch.tensor([label for _, label, _ in known]).long()]),
            own=torch.arange(len(x)),
        )
        if self.warmup:
            self.warmup -= 1
            return value
        kept = range(len(x)) if enqueue is None else enqueue.nonzero().flatten().tolist()
        names = [None] * len(x) if ids is None else ids.tolist()
        self.rows += [(x[i].detach().clone(), int(labels[i]), names[i]) for i in kept]
        self.rows = self.rows[-self.size :]
        return value


def same(ours: Tensor, expected: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(0.5, 2, len(x), dtype=torch.float64)
    for_us, for_them = (torch.autograd.grad((v * weight).sum(), x)[0] for v in (ours, expected))
    torch.testing.assert_close(for_us, for_them, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("wide_engine", "small_tiles")
@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (20, [7] * 8),  # wraps around in the middle of a batch
        (14, [7] * 4),  # and at its end
        (10, [25, 3, 10, 11, 4]),  # batches larger than the memory, and as large
        (1, [3, 2]),
        (100, [7, 0, 1, 7]),  # never full; a batch of nothing
    ],
)
def test_is_the_formula_over_the_batch_and_the_rows_before_it(size: int, sizes: list[int]) -> None:
    ours, past = memory(size), Past(size)
    for x, labels, _ in batches(sizes):
        x.requires_grad_()
        same(ours(x, labels), past(x, labels), x)
    assert int(ours.seen) == sum(sizes)


@pytest.mark.parametrize("size", [16, 9])
def test_what_is_remembered_of_a_sample_is_no_reference_beside_it(size: int) -> None:
    ours, past = memory(size), Past(size)
    for k, (x, labels, ids) in enumerate(batches([12, 12, 5, 12, 12])):
        x.requires_grad_()
        names = None if k == 1 else ids  # rows without a name are nobody's
        same(ours(x, labels, ids=names), past(x, labels, names), x)


@pytest.mark.parametrize("size", [16, 4])
def test_only_rows_of_the_mask_are_remembered(size: int) -> None:
    ours, past = memory(size), Past(size)
    masks = [torch.rand(9) < share for share in (0.5, 0, 0.3, 1, 0.5, 0.5)]
    for (x, labels, ids), mask in zip(batches([9] * 6), masks, strict=True):
        x.requires_grad_()
        same(ours(x, labels, ids=ids, enqueue=mask), past(x, labels, ids, mask), x)
    assert int(ours.seen) == sum(int(mask.sum()) for mask in masks)


def test_nothing_is_remembered_while_warming_up() -> None:
    ours, past = memory(20, warmup=3), Past(20, warmup=3)
    for k, (x, labels, _) in enumerate(batches([7] * 6)):
        assert int(ours.calls) == k
        assert int(ours.seen) == max(k - 3, 0) * 7
        x.requires_grad_()
        same(ours(x, labels), past(x, labels), x)


def test_an_ignored_row_stays_ignored() -> None:
    loss = functools.partial(pairops.contrastive_loss, reduction="none")
    ours = memory(20, loss, ignore_index=3)
    (x, labels, _), (later, others, _) = batches([8, 8], classes=3)
    labels[2] = 3
    value = ours(x, labels)
    assert value[2] == 0
    x[2] = torch.nan  # enqueued with its label, so whatever it holds has no effect
    ours.embeddings[2] = torch.nan
    assert bool(torch.isfinite(ours(later, others)).all())
    assert int((ours.labels == 3).sum()) == 1 + 4


def test_eval_uses_the_memory_and_leaves_it_as_it_is() -> None:
    ours = memory(20)
    (x, labels, _), (later, others, _) = batches([8, 8])
    ours(x, labels)
    state = copy.deepcopy(ours.state_dict())
    assert not torch.equal(ours.eval()(later, others), SUPCON(later, others))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, state[name]), name
    expected = ours(later, others)
    assert torch.equal(ours.train()(later, others), expected)


def train(model: nn.Linear, loss: CrossBatchMemory, data: list[Any]) -> list[Tensor]:
    """Losses of a step each, and the weights after it."""
    found = []
    for x, labels, ids in data:
        value = loss(model(x), labels, ids=ids)
        (gradient,) = torch.autograd.grad(value, model.weight)
        with torch.no_grad():
            model.weight -= 0.1 * gradient
        found += [value.detach(), model.weight.detach().clone()]
    return found


@pytest.mark.parametrize("size", [20, 1000])
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_a_run_that_resumes_has_the_same_bits(size: int, way: str) -> None:
    """After the ring has gone round, and before."""
    data = batches([7] * 10)
    model = nn.Linear(9, 9, bias=False, dtype=torch.float64)
    ours = memory(size, pairops.supcon_loss, warmup=1)
    train(model, ours, data[:5])
    resumed, copied = copy.deepcopy(model), memory(size, pairops.supcon_loss, warmup=1)
    if way == "state_dict":
        copied.load_state_dict(ours.state_dict())
    else:
        copied = copy.deepcopy(ours) if way == "deepcopy" else pickle.loads(pickle.dumps(ours))
    expected = train(model, ours, data[5:])
    for ours_again, first in zip(train(resumed, copied, data[5:]), expected, strict=True):
        assert torch.equal(ours_again, first)


def test_state_is_no_buffer_and_is_moved_saved_and_loaded_as_one() -> None:
    """Whoever makes the buffers of all ranks alike leaves it as it is."""
    model = nn.Sequential(nn.BatchNorm1d(9), memory(4))
    names = ["embeddings", "labels", "ids", "seen", "calls"]
    assert [name for name, _ in model.named_buffers() if name.startswith("1.")] == []
    assert [name for name, _ in model[1].named_buffers()] == []
    assert [name for name, _ in model[1].named_buffers("a", recurse=False)] == [
        f"a.{name}" for name in names
    ]
    (x, labels, _), *_ = batches([3])
    model[1](x, labels)
    saved = model.state_dict()
    assert [name for name in saved if name.startswith("1.")] == [f"1.{name}" for name in names]
    assert model.to("meta")[1].embeddings.device.type == "meta"
    for assign in (False, True):
        other = nn.Sequential(nn.BatchNorm1d(9), memory(4))
        other.load_state_dict(saved, assign=assign)
        assert torch.equal(other[1].labels, saved["1.labels"])
        assert (other[1].labels.data_ptr() == saved["1.labels"].data_ptr()) == assign
    del saved["1.seen"]
    saved["1.ids"] = saved["1.ids"][:2]
    saved["1.id"] = saved["1.calls"]
    found = other.load_state_dict({k: v for k, v in saved.items() if k != "1.ids"}, strict=False)
    assert found == (["1.ids", "1.seen"], ["1.id"])
    with pytest.raises(RuntimeError) as raised:
        other.load_state_dict(saved)
    for said in ("1.ids is (2,); it must be a tensor (4,)", '"1.seen"', '"1.id"'):
        assert said in str(raised.value)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float32])
def test_embeddings_are_kept_in_one_dtype_and_compared_in_another(kept: torch.dtype) -> None:
    ours = CrossBatchMemory(SUPCON, 9, 20, dtype=kept)
    (x, labels, _), (later, others, _) = batches([8, 8])
    ours(x, labels)
    expected = oracle.supcon_loss(
        later,
        others,
        ref_emb=torch.cat([later, x.to(kept).double()]),
        ref_labels=torch.cat([others, labels]),
        own=torch.arange(8),
    )
    torch.testing.assert_close(ours(later, others), expected, rtol=1e-12, atol=1e-12)
    assert ours(later.half(), others).dtype == torch.float32
    moved = ours.to(torch.float64)
    assert moved.embeddings.dtype == torch.float64
    assert moved.labels.dtype == moved.ids.dtype == moved.seen.dtype == torch.int64


def of_ones_own(x: Tensor, labels: Tensor, **further: Any) -> Tensor:
    terms = pairops.lse(pairops.NEG, 2.0, 0.0), pairops.lse(pairops.POS, -2.0, 0.0)
    return pairops.pair_loss(x, labels, *terms, combine=lambda a, b: a.exp() + b.exp(), **further)


@pytest.mark.parametrize(
    "loss",
    [
        pairops.ms_loss,
        pairops.lifted_structure_loss,
        pairops.nt_xent_loss,
        functools.partial(pairops.triplet_loss, margin=0.3),
        of_ones_own,
    ],
)
def test_wraps_functions_of_every_kind(loss: Any) -> None:
    ours = memory(30, loss)
    for x, labels, _ in batches([8, 8]):
        weight = torch.rand(8, dtype=torch.float64)
        first = ours.seen.clone()
        value = ours(x, labels, weight=weight)
        if first == 0:
            torch.testing.assert_close(value, loss(x, labels, weight=weight))
    assert torch.isfinite(value)


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=exhaustive), {"ids": True, "enqueue": True}]
)
def test_compiles_as_one_graph(options: dict[str, bool]) -> None:
    ours = memory(20)
    compiled = torch.compile(copy.deepcopy(ours), backend="aot_eager", fullgraph=True)
    for x, labels, ids in batches([8] * 4):
        given = {"ids": ids, "enqueue": labels > 2}
        given = {name: given[name] for name in options}
        torch.testing.assert_close(compiled(x, labels, **given), ours(x, labels, **given))


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: memory(5, "supcon"), TypeError, "loss is str"),
        (lambda: memory(5, pairops.info_nce_loss), TypeError, "loss is info_nce_loss"),
        (lambda: memory(5, pairops.tal_loss), TypeError, "loss is tal_loss"),
        (lambda: memory(5, pairops.n_pair_loss), TypeError, "loss is n_pair_loss"),
        (lambda: memory(5, pairops.proxy_nca_loss), TypeError, "loss is proxy_nca_loss"),
        (lambda: memory(5, nn.Linear(2, 2)), TypeError, "loss is Linear"),
        (
            lambda: memory(5, functools.partial(SUPCON, ignore_index=1)),
            ValueError,
            "loss is given ignore_index",
        ),
        (lambda: memory(0), ValueError, "memory_size is 0"),
        (lambda: memory(2.5), TypeError, "memory_size is float"),  # type: ignore[arg-type]
        (lambda: memory(5, warmup=-1), ValueError, "warmup is -1"),
        (lambda: memory(5, ignore_index=None), TypeError, "ignore_index is NoneType"),
        (lambda: CrossBatchMemory(SUPCON, 0), ValueError, "embedding_size is 0"),
        (lambda: CrossBatchMemory(SUPCON, 9, dtype=torch.int64), TypeError, "dtype is torch.int64"),
    ],
)
def test_what_is_refused_when_made(make: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


@pytest.mark.parametrize(
    ("changed", "kind", "says"),
    [
        ({"x": smooth(4, 8)}, ValueError, "x has D 8; it must be the embedding_size 9"),
        ({"x": smooth(4, 9).long()}, TypeError, "x is torch.int64"),
        ({"x": smooth(4, 9).to("meta")}, ValueError, "x is on meta, where there are no values"),
        ({"labels": torch.rand(4)}, TypeError, "labels is torch.float32"),
        ({"labels": torch.arange(5)}, ValueError, "labels has shape"),
        ({"ids": torch.rand(4)}, TypeError, "ids is torch.float32"),
        ({"ids": torch.arange(3)}, ValueError, "ids has shape"),
        ({"enqueue": torch.arange(4)}, TypeError, "enqueue is torch.int64"),
        ({"enqueue": True}, TypeError, "enqueue is bool"),
        ({"enqueue": torch.ones(3).bool()}, ValueError, r"enqueue has shape \(3,\)"),
    ],
)
def test_what_is_refused_when_called(
    changed: dict[str, Any], kind: type[Exception], says: str
) -> None:
    given = {"x": smooth(4, 9), "labels": torch.arange(4), **changed}
    with pytest.raises(kind, match=says):
        memory(5)(**given)


def test_shows_what_it_is() -> None:
    loss = functools.partial(pairops.supcon_loss, temperature=0.2)
    shown = repr(CrossBatchMemory(loss, 9, 7, warmup=2))
    assert "supcon_loss(temperature=0.2), embedding_size=9, memory_size=7, warmup=2" in shown


def test_what_a_module_is_given_is_not_overridden() -> None:
    with pytest.raises(ValueError, match="loss is given ignore_index; it must be left to"):
        pairops.CrossBatchMemory(pairops.nn.SupConLoss(ignore_index=-1), 5, 4)
    with pytest.raises(TypeError, match="loss is max, which does not tell its arguments"):
        pairops.CrossBatchMemory(max, 5, 4)


def test_an_empty_place_is_empty_under_another_ignore_index() -> None:
    x, labels = torch.randn(4, 5), torch.tensor([0, 0, 1, 1])
    first = pairops.CrossBatchMemory(pairops.supcon_loss, 5, 8)
    first(x[:2], labels[:2])
    other = pairops.CrossBatchMemory(pairops.supcon_loss, 5, 8, ignore_index=-1)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(x, labels), other(x, labels))
