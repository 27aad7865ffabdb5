"""Positive pairs as rows that are picked from x: few at once, many a block at a time."""

import inspect
import itertools
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import oracle
import pairops
from pairops import NEG, POS, Earlier, Pairs, PositiveRows, highest, lse, row_stats, total
from pairops.ops.row_stats import picked_rows
from support.engine_names import HERE, TRITON
from support.exhaustive import exhaustive, exhaustive_but
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device
from support.term_problems import any_problem, every_kind_of_term, results, terms_for

Given = dict[str, Any]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of picked rows, the last of which is ragged."""
    monkeypatch.setattr(picked_rows, "ROWS", 30)
    monkeypatch.setattr(picked_rows, "ENTRIES", 1)


def example() -> Callable[..., Tensor]:
    """The function of the docstring's example."""
    _, _, text = (inspect.getdoc(PositiveRows) or "").partition("Example:\n")
    known: Given = {}
    exec(textwrap.dedent(text), known)
    found: Callable[..., Tensor] = known["smooth_average_precision"]
    return found


def naive_precision(x: Tensor, labels: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Anchor by anchor, positive by positive, as Brown et al. write it, 2020."""
    unit = torch.nn.functional.normalize(x.to(dtype))
    s, found = unit @ unit.T, []
    for i, label in enumerate(labels):
        others = torch.arange(len(x)) != i
        among, precisions = (labels == label) & others, s.new_zeros(())
        for p in among.nonzero()[:, 0]:
            before = torch.sigmoid((s[i] - s[i, p]) / temperature)
            rest = others & (torch.arange(len(x)) != p)
            precisions = precisions + (1 + before[among & rest].sum()) / (1 + before[rest].sum())
        found.append(precisions / among.sum().clamp(min=1))
    return torch.stack(found)


@pytest.mark.usefixtures("blocks", "small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_example_is_smooth_average_precision(dtype: torch.dtype) -> None:
    labels, x = torch.randint(0, 6, (33,)), smooth(33, 9, dtype)
    labels[4] = 9  # alone
    ran = check(
        [x],
        lambda x: example()(x, labels, 0.2),
        lambda x, dtype: naive_precision(x, labels, 0.2, dtype),
    )
    named = {"cpu", "blockwise", "dense"} | (
        {"triton", "chunked"} if dtype != torch.float64 else set()
    )
    assert set(ran) == named & set(HERE)


@pytest.mark.usefixtures("blocks", "small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize(
    ("loss", "params"),
    [
        ("triplet_loss", {"mining": "all", "soft": True, "distance": "l2"}),
        ("triplet_loss", {"mining": "semihard"}),
        ("lifted_structure_loss", {"form": "original"}),
    ],
)
def test_losses(loss: str, params: Given, two_sets: bool) -> None:
    labels, sets = torch.randint(0, 5, (34,)), [smooth(34, 9)]
    labels[[3, 30]] = -100
    given = {"ignore_index": -100, **params}
    if two_sets:
        sets.append(smooth(41, 9))
        given["ref_labels"] = torch.randint(0, 5, (41,))

    def called(module: Any, x: Tensor, y: tuple[Tensor, ...], **more: Any) -> Tensor:
        other = {"ref_emb": y[0]} if y else {}
        value: Tensor = getattr(module, loss)(x, labels, **given, **other, **more)
        return value

    check(
        sets,
        lambda x, *y: called(pairops, x, y, reduction="none"),
        lambda x, *y, dtype: called(oracle, x, y, dtype=dtype),
    )


def copied_and_picked(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Run with copies of all rows at once, and by blocks."""
    whole = run()
    with monkeypatch.context() as patched:
        patched.setattr(picked_rows, "ROWS", 12)
        return whole, run()


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize(
    ("engine", "sets", "columns"),
    exhaustive_but(
        itertools.product(HERE, ["one set", "two sets", "named by ids"], [False, True]),
        lambda engine, sets, columns: (
            columns == (sets == "two sets")
            and (engine not in TRITON or columns == (engine == "triton"))
            and (engine not in TRITON or sets != "named by ids")
        ),
    ),
    indirect=["engine"],
)
def test_terms_of_every_kind(
    engine: str, sets: str, columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, arguments of rows and of columns, extremes, an earlier term: as of copies."""
    x, labels, other = any_problem(31, 37, 7, 4, sets == "one set", sets == "named by ids")
    if engine not in ("cpu", "blockwise", "dense"):
        x, other = (
            x.float(),
            {k: z.float() if z.is_floating_point() else z for k, z in other.items()},
        )
    x.requires_grad_()

    def run() -> list[Tensor]:
        torch.manual_seed(7)
        rows = PositiveRows.of(Pairs.of(x, labels, **other))
        k, m = rows.pairs.shape
        assert (rows.pairs.relation.picked is None) == (picked_rows.ROWS > 12)
        u, v = torch.rand(k).to(x), torch.rand(m).to(x)
        leaves = [x, u.requires_grad_(), v.requires_grad_()]
        terms = terms_for(engine, k, m) if engine == "cpu" else every_kind_of_term(u, v)
        near = highest(NEG, below=rows.score)
        terms += [near, lse(NEG, 3.0, Earlier(near, grad=True), above=near)]
        cols = [lse(NEG, 2.0, 0.1, above=torch.full((m,), 0.2)), highest(POS)] if columns else []
        return results(
            lambda: row_stats(rows.pairs, *terms, cols=cols),
            leaves[: 1 if engine == "cpu" else 3],
        )

    try:
        whole, picked = copied_and_picked(monkeypatch, run)
    except ValueError as error:
        assert "cannot serve this call" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    for a, b in zip(whole, picked, strict=True):
        close = (1e-10, 1e-10) if x.dtype == torch.float64 else (1e-4, 1e-4)
        torch.testing.assert_close(b, a, rtol=close[0], atol=close[1], equal_nan=True)


@pytest.mark.usefixtures("engine", "small_tiles", "small_triton_tiles")
def test_a_window_with_pairs_in_the_last_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = smooth(40, 9).requires_grad_(), torch.arange(40) // 5

    def run() -> list[Tensor]:
        rows = PositiveRows.of(Pairs.of(x, labels))
        above = torch.full_like(rows.score, 2.0)
        above[-9:] = -0.5
        (found,) = row_stats(rows.pairs, lse(NEG, 3.0, 0.1, above=above))
        assert found[:-9].isinf().all()
        return [found, *torch.autograd.grad(found[-9:].sum(), x)]

    whole, picked = copied_and_picked(monkeypatch, run)
    assert whole[1].any()
    torch.testing.assert_close(whole, picked, rtol=1e-4, atol=1e-4)


def test_blocks_change_no_bit_of_a_statistic_and_gradients_are_reproducible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU engine, whatever the number of threads."""
    x, labels = smooth(300, 16).requires_grad_(), torch.arange(300) // 10
    threads = torch.get_num_threads()

    def run() -> list[Tensor]:
        rows = PositiveRows.of(Pairs.of(x, labels))
        term = total(NEG, 4.0, rows.score, function=pairops.functions.hinge)
        (found,) = row_stats(rows.pairs, term)
        value = rows.per_anchor(found)
        return [rows.score, value, torch.autograd.grad(value.square().sum(), x)[0]]

    whole, picked = copied_and_picked(monkeypatch, run)
    assert torch.equal(whole[0], picked[0])
    assert torch.equal(whole[1], picked[1])
    assert (whole[2] - picked[2]).abs().max() <= 1e-5 * whole[2].abs().max()
    monkeypatch.setattr(picked_rows, "ROWS", 12)
    monkeypatch.setattr(picked_rows, "ENTRIES", 1)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(run(), picked, strict=True))
    finally:
        torch.set_num_threads(threads)


def summed(x: Tensor, labels: Tensor) -> Tensor:
    return example()(x, labels, 0.5).square().sum()


@pytest.mark.usefixtures("blocks", "small_tiles", "wide_engine")
def test_derivatives_of_gradients() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    x = smooth(6, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: summed(x, labels), x)
    assert torch.autograd.gradgradcheck(lambda x: summed(x, labels), x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.usefixtures("blocks", "small_tiles")
@pytest.mark.parametrize("engine_name", ["auto", pytest.param("blockwise", marks=exhaustive)])
def test_transforms_and_the_compiler(engine_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, x = torch.randint(0, 6, (40,)), smooth(40, 5, torch.float64)
    monkeypatch.setattr(torch._dynamo.config, "capture_dynamic_output_shape_ops", True)
    torch._dynamo.reset()
    smooth_ap = example()  # what is read of a docstring is not compiled again

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return smooth_ap(x, labels, 0.5).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with pairops.engine(engine_name):
        for n in (40, 31):
            leaf, again = (x[:n].clone().requires_grad_() for _ in range(2))
            value = loss(leaf, labels[:n])
            value.backward()
            found = compiled(again, labels[:n])
            found.backward()
            torch.testing.assert_close(found, value)
            torch.testing.assert_close(again.grad, leaf.grad)
            gradient = torch.func.grad(loss)(x[:n], labels[:n])
            torch.testing.assert_close(gradient, leaf.grad)
            along = smooth(n, 5, torch.float64)
            _, moved = torch.func.jvp(lambda x, n=n: loss(x, labels[:n]), (x[:n],), (along,))
            torch.testing.assert_close(moved, (gradient * along).sum())


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("engine_name", ["cpu", "blockwise"])
def test_opcheck(engine_name: str) -> None:
    calls: list[tuple[Any, Any]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if op.name().startswith("pairops::row_stats"):
                calls.append((op, tree_map_only(Tensor, Tensor.detach, args)))
            return op(*args, **(kwargs or {}))

    x = smooth(12, 5).requires_grad_()
    with pairops.engine(engine_name), Recorder():
        rows = PositiveRows.of(Pairs.of(x, torch.arange(12) // 4))
        term = lse(NEG, 2.0, rows.score, above=rows.score - 0.5)
        row_stats(rows.pairs, term)[0].sum().backward()
    assert len(calls) == 4
    for op, args in calls:
        assert set(torch.library.opcheck(op, args).values()) == {"SUCCESS"}


def test_pair_weights_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = smooth(20, 5, torch.float64), torch.randint(0, 4, (20,))

    def run() -> list[Tensor]:
        loss = pairops.losses.triplet_loss
        return [
            pairops.pair_weights(loss, x, labels, mining="all", soft=True),
            pairops.pair_weights(loss, x, labels, mining="semihard", rows=slice(3, 9)),
            *pairops.mine(x, labels, mining="semihard"),
        ]

    torch.testing.assert_close(*copied_and_picked(monkeypatch, run))


@pytest.mark.usefixtures("blocks")
def test_rows_of_rows_and_of_nobody() -> None:
    labels, x = torch.tensor([0, 1, 0, 0, 1, 2]), smooth(6, 4)
    rows = PositiveRows.of(Pairs.of(x, labels))
    with pytest.raises(ValueError, match="pairs are those of positive rows"):
        PositiveRows.of(rows.pairs)
    assert rows.per_anchor(torch.ones(8)).tolist() == [2, 1, 2, 2, 1, 0]
    leaf = x.clone().requires_grad_()
    nobody = PositiveRows.of(Pairs.of(leaf, torch.arange(6)))
    (found,) = row_stats(nobody.pairs, lse(NEG, 1.0, nobody.score))
    nobody.per_anchor(found).sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()
