"""Careful at first use: wrong kernels are noticed, right ones are not, and nobody waits."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops import NEG, POS, Pairs, lse, row_stats, total
from pairops.ops import engines
from pairops.ops.engines import ENGINES, cuda_engine, first_use, sampled_rows
from pairops.ops.engines.protocol import terms_for_engine
from pairops.ops.terms.term import Term, Wanted
from support.exhaustive import exhaustive, exhaustive_but
from support.on_cpu import device as device

CHECKED = "cuda"  # the engine where one is enough


pytestmark = pytest.mark.usefixtures("small_triton_tiles")


@pytest.fixture(autouse=True)
def _careful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a CPU are those to be checked, and none was."""
    monkeypatch.setattr(first_use, "ENABLED", True)
    monkeypatch.setattr(first_use, "DEVICE", "cpu")
    monkeypatch.setattr(first_use, "_passed", lambda _: frozenset())
    for name in ("WRONG", "AGREED"):
        monkeypatch.setattr(first_use, name, {})
    monkeypatch.setattr(first_use, "_seen", set())
    monkeypatch.setattr(first_use, "_waiting", [])


def batch(n: int = 60, d: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 12, (n,))
    labels[n // 2] = -100
    return torch.randn(n, d).to(dtype).requires_grad_(), labels


def step(engine: str, x: Tensor, labels: Tensor, **keywords: Any) -> None:
    """One step of a loss with windows, over one set or two."""
    with pairops.engine(engine):
        pairops.ms_loss(x, labels, **keywords, reduction="sum").backward()


Change = Callable[[Tensor], Tensor]


def change_forward(monkeypatch: pytest.MonkeyPatch, engine: str, change: Change) -> None:
    """Let the engine return other statistics, as kernels would that are wrong."""
    forward: Any = ENGINES[engine].forward.__wrapped__  # type: ignore[attr-defined]

    def wrong(*call: Any) -> Any:
        statistics, *rest = forward(*call)
        return [change(z) for z in statistics], *rest

    monkeypatch.setattr(ENGINES[engine], "forward", first_use.checked_forward(engine)(wrong))


def change_backward(
    monkeypatch: pytest.MonkeyPatch, engine: str, axis: int, change: Change
) -> None:
    backward: Any = ENGINES[engine].backward.__wrapped__  # type: ignore[union-attr]

    def wrong(*call: Any) -> Any:
        *gradients, by_vector = backward(*call)
        gradients[axis] = change(gradients[axis])
        return *gradients, by_vector

    monkeypatch.setattr(ENGINES[engine], "backward", first_use.checked_backward(engine)(wrong))


@pytest.mark.parametrize(
    ("engine", "dtype", "distance"),
    exhaustive_but(
        [
            ("cuda", torch.float32, "cosine"), ("cuda", torch.bfloat16, "cosine"),
            ("cuda", torch.float16, "dot"), ("triton", torch.float32, "l2"),
            ("triton", torch.bfloat16, "cosine"), ("chunked", torch.float32, "dot"),
        ],
        lambda engine, *_: engine == CHECKED,
    ),
)  # fmt: skip
def test_right_kernels_are_checked_once_and_stay(
    engine: str, dtype: torch.dtype, distance: str
) -> None:
    x, labels = batch(dtype=dtype)
    y, ref_labels = batch(47, dtype=dtype)
    for other in ({}, {"ref_emb": y, "ref_labels": ref_labels}):
        before = len(first_use._seen)
        step(engine, x, labels, distance=distance, **other)
        after = len(first_use._seen)
        assert after > before
        step(engine, x, labels, distance=distance, **other)
        assert len(first_use._seen) == after
    assert {key[1] for key in first_use._seen} == {"forward", "backward"}
    first_use.look()
    assert not first_use._waiting
    assert not first_use.WRONG


@exhaustive
@pytest.mark.parametrize("engine", ["triton", "chunked"])
def test_listed_positives_are_found_without_a_wait(engine: str) -> None:
    x, _ = batch()
    rows, cols = torch.randint(0, 60, (2, 200)).unbind()
    rows, cols = rows[rows != cols], cols[rows != cols]
    pairs = Pairs.listed(x, rows, cols)
    with pairops.engine(engine):
        found = row_stats(
            pairs, lse(POS, 3.0, 0.1), total(NEG, 1.0, 0.2), cols=[lse(POS, 2.0, 0.0)]
        )
        sum(torch.where(z.isinf(), 0, z).sum() for z in found).backward()  # type: ignore[union-attr]
    first_use.look()
    assert len(first_use._seen) == 2
    assert not first_use.WRONG


def test_wrong_statistics_warn_once_and_leave_the_engine_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_forward(monkeypatch, CHECKED, lambda z: z * 1.001)
    monkeypatch.setattr(engines, "_ON_CPU", [CHECKED, "blockwise"])
    monkeypatch.setattr(engines, "_default", "auto")
    x, labels = batch()
    served = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            pairs = Pairs.of(x, labels)
            served.append(engines.choose(pairs, [lse(NEG, 2.0, 0.0)], []))
            with pairops.engine(served[-1]):
                row_stats(pairs, lse(NEG, 2.0, 0.0))
    assert served == [CHECKED, "blockwise", "blockwise"]
    (warning,) = said
    text = str(warning.message)
    assert "lse:neg:affine of rows differs from torch by" in text
    assert "of shape (60, 12) and 60 columns" in text
    assert "PAIROPS_CHECK=0" in text
    with pairops.engine(CHECKED), pytest.raises(ValueError, match="results were wrong when"):
        row_stats(Pairs.of(x, labels), total(POS, 1.0, 0.0))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wrong_gradient(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row in ten: all of these few rows are sampled."""

    def off(g: Tensor) -> Tensor:
        g = g.clone()
        g[::10] *= 1.01
        return g

    change_backward(monkeypatch, CHECKED, axis, off)
    x, _ = batch()
    y, _ = batch()
    with pairops.engine(CHECKED):
        pairops.info_nce_loss(x, y).backward()
    with pytest.warns(RuntimeWarning, match=f"gradient by {'xy'[axis]}"):
        first_use.look()
    assert set(first_use.WRONG) == {CHECKED}


@pytest.mark.parametrize("wrong", ["", "forward", "backward"])
def test_a_mean_and_its_gradient_are_checked(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a mean in one node, of terms whose windows are earlier ones, times a number."""
    forward: Any = cuda_engine.forward_with_mean.__wrapped__
    backward: Any = cuda_engine.backward_of_mean.__wrapped__  # type: ignore[attr-defined]

    def made(*call: Any) -> Any:
        found = forward(*call)
        return found._replace(values=[z * 1.001 for z in found.values])

    def gradients(*call: Any) -> Any:
        dx, *rest = backward(*call)
        return dx * 1.001, *rest

    changed = first_use.checked_forward(CHECKED)(made if wrong == "forward" else forward)
    monkeypatch.setattr(cuda_engine, "forward_with_mean", changed)
    changed = first_use.checked_backward(CHECKED)(gradients if wrong == "backward" else backward)
    monkeypatch.setattr(cuda_engine, "backward_of_mean", changed)
    x, labels = batch()
    with pairops.engine(CHECKED):
        (5 * pairops.ms_loss(x, labels)).backward()
    assert {key[1] for key in first_use._seen} == {"forward", "backward"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first_use.look()
    assert len(said) == bool(wrong)
    assert all("differs from torch" in str(warning.message) for warning in said)


@exhaustive
@pytest.mark.parametrize("engine", ["triton", "chunked"])
def test_other_engines_with_wrong_results(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change_forward(monkeypatch, engine, lambda z: z * 1.001)
    x, labels = batch()
    with pairops.engine(engine):
        row_stats(Pairs.of(x, labels), lse(NEG, 2.0, 0.0))
    with pytest.warns(RuntimeWarning, match="differs from torch"):
        first_use.look()


def test_a_result_that_is_no_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    change_forward(monkeypatch, CHECKED, lambda z: torch.full_like(z, torch.nan))
    x, labels = batch()
    with pairops.engine(CHECKED):
        row_stats(Pairs.of(x, labels), lse(NEG, 2.0, 0.0))
    with pytest.warns(RuntimeWarning, match="by nan"):
        first_use.look()


def compared(x: Tensor, term: Callable[[Pairs], Term], change: Change = lambda z: z) -> list[float]:
    """What `sampled_rows` finds of blockwise torch's statistic: error, allowed, rows."""
    pairs = Pairs.of(x.detach(), torch.arange(len(x)) // 5)
    rows = [term(pairs).over(*pairs.shape, pairs.dtype)]
    with torch.no_grad():
        statistics, *_ = ENGINES["blockwise"].forward(pairs, rows, [])
        (found,) = sampled_rows.of_statistics(pairs, rows, [], [change(z) for z in statistics])
    numbers: list[float] = found.numbers.tolist()
    return numbers


def test_rows_with_numbers_that_are_not_finite_are_skipped() -> None:
    x, _ = batch(40)
    with torch.no_grad():
        x[7] = torch.nan
    error, allowed, rows = compared(x, lambda _: total(POS, 1.0, 0.0))
    assert rows == 35  # the row itself, and those whose positive it is
    assert error <= allowed


def test_rows_with_a_pair_at_a_window_are_skipped() -> None:
    """Where rounding decides, a wrong statistic says nothing."""
    x, _ = batch(40)
    y = torch.nn.functional.normalize(x.detach(), dim=1)
    s = y @ y.T
    window = torch.full((40,), 2.0)
    window[:10] = s[:10, 30] * (1 + 2**-23)
    off = torch.ones(40)
    off[:10] = 2.0
    error, allowed, rows = compared(
        x, lambda _: total(NEG, 1.0, 0.0, below=window), lambda z: z * off
    )
    assert rows == 30
    assert error <= allowed
    window[:10] = 2.0
    error, allowed, rows = compared(
        x, lambda _: total(NEG, 1.0, 0.0, below=window), lambda z: z * off
    )
    assert rows == 40
    assert error > allowed


@pytest.mark.parametrize(
    ("owners", "partners", "rows"),
    [(512, 512, 64), (100_000, 16_384, 64), (100_000, 65_536, 16), (9, 2**20, 4), (3, 2**20, 3)],
)
def test_how_many_rows_are_sampled(owners: int, partners: int, rows: int) -> None:
    assert sampled_rows.rows_of(owners, partners) == rows


class _Later:
    """An event that has passed when a test says so."""

    passed = False

    def query(self) -> bool:
        return self.passed


# What is made on a device without a copy from the host. To `_to_copy` a device would be a copy.
_MADE_THERE = "arange", "scalar_tensor", "empty", "zeros", "full"


class _Watching(TorchDispatchMode):
    """Count ops, and refuse those that wait for a device."""

    ops = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero")
        assert "device" not in (kwargs or {}) or name in _MADE_THERE
        self.ops += 1
        return op(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a comparison is enqueued nor where it is not finished yet."""
    event = _Later()
    monkeypatch.setattr(first_use, "_event", lambda _: event)
    read: list[Tensor] = []
    monkeypatch.setattr(first_use, "_read", lambda z: (read.append(z), z.tolist())[1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("it waits"))
    x, labels = batch()
    pairs = Pairs.of(x.detach(), labels)
    rows = [lse(NEG, 3.0, 0.1, above=torch.zeros(60)).over(60, 60, torch.float32)]
    cotangents = [torch.ones(60)]
    engine = ENGINES[CHECKED]
    assert engine.backward is not None
    with torch.no_grad(), _Watching() as watching:
        statistics, _, masks = engine.forward(pairs, rows, [])
        engine.backward(pairs, rows, [], statistics, cotangents, masks, Wanted(True, True))
        engine.forward(pairs, rows, [])
    assert watching.ops > 100  # it was compared
    first_use.look()
    assert len(first_use._waiting) == 2
    assert not read
    event.passed = True
    assert first_use.reason_against(CHECKED, False) is None
    assert not first_use._waiting
    assert len(read) == 2


@exhaustive
@pytest.mark.parametrize("two_sets", [False, True])
def test_comparisons_need_no_value_of_a_tensor(two_sets: bool) -> None:
    """With tensors that have none."""
    x, labels = batch()
    y, ref_labels = batch(47)
    other = {"ref_emb": y.detach(), "ref_labels": ref_labels} if two_sets else {}
    lists = Pairs.listed(x.detach(), labels.clamp(min=0), labels.clamp(min=0), ref_emb=y.detach())
    for pairs in (Pairs.of(x.detach(), labels, distance="l2", **other), lists):
        n, m = pairs.shape
        rows = [lse(NEG, 3.0, 0.1, above=torch.zeros(n)).over(n, m, torch.float32)]
        cols = [total(POS, 1.0, 0.0).over(m, n, torch.float32)]
        terms = terms_for_engine(ENGINES["triton"], pairs, rows, cols)
        kinds = [torch.ones(n), torch.ones(m)]
        gradients = torch.zeros(n, 12), torch.zeros(m, 12)
        with FakeTensorMode(allow_non_fake_inputs=True):
            found = sampled_rows.of_statistics(pairs, *terms, kinds)
            found += sampled_rows.of_gradients(
                pairs, *terms, kinds, kinds, Wanted(True, True), gradients
            )
        assert len(found) == 3 + (pairs.y is not None)


def test_what_is_never_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what a compiled graph or a transform calls, nor what a CUDA graph captures, nor
    float32 below "highest", nor a GPU that is known, nor anything with PAIROPS_CHECK=0."""
    x, labels = batch()

    def loss(x: Tensor) -> Tensor:
        with pairops.engine(CHECKED):
            return pairops.ms_loss(x, labels, reduction="sum")

    torch.func.grad(loss)(x.detach())
    assert not first_use._seen
    with monkeypatch.context() as while_captured:
        while_captured.setattr(first_use, "_capturing", lambda: True)
        loss(x).backward()
        assert not first_use._seen
        first_use._waiting.append(None)  # type: ignore[arg-type]
        first_use.look()  # which would ask its event
        first_use._waiting.clear()
    torch.set_float32_matmul_precision("high")
    try:
        loss(x).backward()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not first_use._seen
    monkeypatch.setattr(first_use, "ENABLED", False)
    loss(x).backward()
    assert not first_use._seen
    monkeypatch.setattr(first_use, "ENABLED", True)
    monkeypatch.setattr(first_use, "_passed", lambda _: frozenset([CHECKED]))
    loss(x).backward()
    assert not first_use._waiting
    monkeypatch.setattr(first_use, "_passed", lambda _: frozenset())
    monkeypatch.setattr(first_use, "_seen", set())
    loss(x).backward()
    assert first_use._waiting


@pytest.mark.xdist_group("ranks")
def test_ranks_leave_an_engine_out_together(ranks: Any) -> None:
    """One rank alone finds it wrong: at the second call they agree, and the third has another."""
    found = ranks.run(
        3, "support.first_use_of_ranks:calls", [{"wrong": rank == 1} for rank in range(3)]
    )
    assert found == [["blockwise", "blockwise", "ValueError"]] * 3
