"""Positives by list, against the matrix that has them."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import ALL, NEG, POS, Pairs, highest, lse, row_stats, total
from pairops.ops.row_stats.positive_rows import PositiveRows
from support.engine_names import HERE, NARROW, WIDE
from support.exhaustive import exhaustive, exhaustive_but
from support.gloo_ranks import Ranks
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device

SERVING = ["cpu", "triton", "chunked", "blockwise", "dense"]
List = tuple[Tensor, Tensor]


def listed(n: int, m: int, count: int, one_set: bool) -> List:
    """Of some rows none, of others many; directed, and some of them twice."""
    generator = torch.Generator().manual_seed(n + count)
    rows = torch.randint(0, max(2 * n // 3, 1), (count,), generator=generator)
    cols = torch.randint(0, max(m, 1), (count,), generator=generator)
    if one_set:
        kept = rows != cols
        rows, cols = rows[kept], cols[kept]
    return torch.cat([rows, rows[:5]]), torch.cat([cols, cols[:5]])


def nothing() -> List:
    return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)


# Rows, references or 0 for one set, and the list.
CASES: dict[str, tuple[int, int, List]] = {
    "one set": (40, 0, listed(40, 40, 90, True)),
    "two sets": (40, 57, listed(40, 57, 120, False)),
    "int32": (30, 20, (torch.tensor([3, 1]).int(), torch.tensor([19, 0]).int())),
    "whole tiles": (110, 210, listed(110, 210, 60, False)),
    "an empty list": (20, 30, nothing()),
    "an empty list of one set": (20, 0, nothing()),
    "everyone": (
        9, 7, (torch.arange(9).repeat_interleave(7), torch.arange(7).repeat(9)),
    ),
    "one row": (1, 5, (torch.tensor([0, 0]), torch.tensor([4, 2]))),
    "one row alone": (1, 0, nothing()),
    "no references": (6, 0, nothing()),
}  # fmt: skip


def sets(name: str, dtype: torch.dtype = torch.float32, d: int = 9) -> list[Tensor]:
    n, m, _ = CASES[name]
    y = [smooth(m, d, dtype)] if m else [smooth(0, d, dtype)] * (name == "no references")
    return [smooth(n, d, dtype), *y]


def mask_of(name: str) -> Tensor:
    (n, m), (rows, cols) = [len(z) for z in (sets(name) * 2)[:2]], CASES[name][2]
    mask = torch.zeros(n, m, dtype=torch.bool)
    mask[rows.long(), cols.long()] = True
    return mask


def pairs_of(name: str, dtype: torch.dtype = torch.float32, **keywords: Any) -> Pairs:
    x, *y = sets(name, dtype)
    return Pairs.listed(x, *CASES[name][2], **({"ref_emb": y[0]} if y else {}), **keywords)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "engine"),
    exhaustive_but(
        itertools.product(CASES, SERVING),
        lambda case, engine: engine in WIDE or case in ("one set", "two sets", "no references"),
    ),
)
def test_who_is_a_positive_of_whom(name: str, engine: str) -> None:
    """Counted, in pairs as rows, and by sums of whole numbers that tell which, of columns too."""
    truth = mask_of(name)
    pairs = pairs_of(name)
    assert pairs.positives().tolist() == truth.sum(1).tolist()
    present = torch.ones_like(truth)
    if pairs.y is None:
        present.fill_diagonal_(False)
    assert pairs.counts()[1].tolist() == (present & ~truth).sum(1).tolist()
    rows = PositiveRows.of(pairs)
    found = sorted(zip(rows.anchor.tolist(), rows.partner.tolist(), strict=True))
    assert [list(pair) for pair in found] == truth.nonzero().tolist()
    n, m = pairs.shape
    marks = torch.randint(1, 2**16, (n + m,)).float()  # whose sums float32 holds exactly
    x, y = marks[:n], marks[n:]
    by_cols, by_rows = (
        Pairs.listed(
            a[:, None], *CASES[name][2], ref_emb=b[:, None], distance="dot",
            ids=torch.arange(n), ref_ids=torch.arange(m) + n * (pairs.y is not None),
        )
        for a, b in ((torch.ones(n), y), (x, torch.ones(m)))
    )  # fmt: skip
    with pairops.engine(engine):
        sides = [(POS, truth), (NEG, present & ~truth)]
        if engine != "cpu":  # which has no sum of all
            sides.append((ALL, present))
        for side, mask in sides:
            (of_rows,) = row_stats(by_cols, total(side, 1.0, 0.0))
            (of_columns,) = row_stats(by_rows, cols=[total(side, 1.0, 0.0)])
            assert of_rows.tolist() == (mask * y).sum(1).tolist()
            assert of_columns.tolist() == (mask * x[:, None]).sum(0).tolist()


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("supcon_loss", {"temperature": 0.2}),
    ("ms_loss", {"epsilon": None}),
    ("nt_xent_loss", {"temperature": 0.5}),
    ("contrastive_loss", {"pos_margin": 0.9, "neg_margin": 0.1}),
    ("triplet_loss", {"mining": "semihard"}),
    ("triplet_loss", {"mining": "hard", "distance": "l2"}),
    ("lifted_structure_loss", {}),
    ("lifted_structure_loss", {"form": "original"}),
    ("circle_loss", {"gamma": 4.0}),
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("loss", "case"),
    exhaustive_but(
        itertools.product(LOSSES, ["one set", "two sets", "an empty list", "one row"]),
        lambda loss, case: case == "one set" or loss[0] == "supcon_loss",
    ),
)
def test_losses(loss: tuple[str, dict[str, Any]], case: str) -> None:
    name, params = loss
    rows, cols = CASES[case][2]

    def given(y: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"positives": (rows, cols), **params, **({"ref_emb": y[0]} if y else {})}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        return getattr(pairops, name)(x, None, reduction="none", **given(y))

    def formula(x: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        return getattr(oracle, name)(x, None, dtype=dtype, **given(y))

    ran = check(sets(case), ours, formula)
    assert set(ran) == set(SERVING) & set(HERE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_and_windows(dtype: torch.dtype) -> None:
    """Mined: NEG leaves out what is listed, under a window too."""
    rows, cols = CASES["two sets"][2]
    given = {"positives": (rows, cols), "epsilon": 0.1}

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.ms_loss(x, None, ref_emb=y, reduction="none", **given)

    def formula(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.ms_loss(x, None, ref_emb=y, dtype=dtype, **given)

    signs = [torch.randn(len(z), 33).sign().to(dtype) for z in sets("two sets")]
    check(signs, ours, formula, SERVING)


def test_an_empty_list_is_a_batch_without_positives() -> None:
    x = smooth(12, 5)
    found = pairops.supcon_loss(x, None, positives=nothing(), reduction="none")
    assert found.tolist() == pairops.supcon_loss(x, torch.arange(12), reduction="none").tolist()


def test_it_is_the_loss_by_labels_where_it_lists_what_labels_say() -> None:
    x, labels = smooth(40, 9, torch.float64), torch.randint(0, 6, (40,))
    same = (labels[:, None] == labels).fill_diagonal_(False)
    rows, cols = same.nonzero().unbind(1)
    shuffled = torch.randperm(len(rows))
    for name, params in LOSSES:
        loss = getattr(pairops, name)
        by_list = loss(x, None, positives=(rows[shuffled], cols[shuffled]), **params)
        torch.testing.assert_close(by_list, loss(x, labels, **params))


def test_indices_weights_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    rows, cols = CASES["one set"][2]
    x = smooth(40, 9)
    s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    mask = mask_of("one set") | torch.eye(40, dtype=torch.bool)
    ((_, index),) = row_stats(Pairs.listed(x, rows, cols), highest(NEG, index=True))
    assert index.tolist() == s.masked_fill(mask, -2).argmax(1).tolist()
    weights = pairops.pair_weights(pairops.supcon_loss, x, None, positives=(rows, cols))
    leaf = x.clone().requires_grad_()
    value = pairops.supcon_loss(leaf, None, positives=(rows, cols))
    value.backward()
    unit = torch.nn.functional.normalize(x).requires_grad_()
    again = pairops.supcon_loss(unit, None, positives=(rows, cols), distance="dot")
    (gradient,) = torch.autograd.grad(again, unit)
    torch.testing.assert_close((weights + weights.T) @ unit.detach(), gradient)
    pairops.explain(pairops.supcon_loss, x, None, positives=(rows, cols))
    assert "of every row" in capsys.readouterr().out


@pytest.mark.parametrize("engine", [name for name in SERVING if name in WIDE])
@pytest.mark.parametrize("name", ["supcon_loss", "triplet_loss"])
def test_transforms(name: str, engine: str) -> None:
    x, y = sets("two sets", torch.float64)
    rows, cols = CASES["two sets"][2]
    params = {"soft": True} if name == "triplet_loss" else {}

    def loss(x: Tensor) -> Tensor:
        with pairops.engine(engine):
            value: Tensor = getattr(pairops, name)(
                x, None, ref_emb=y, positives=(rows, cols), **params
            )
        return value

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), gradient)
    few = x[:6].clone().requires_grad_()
    torch.autograd.gradcheck(lambda z: loss(torch.cat([z, x[6:]])), (few,))
    torch.autograd.gradgradcheck(lambda z: loss(torch.cat([z, x[6:]])), (few,), atol=1e-5)
    by_sample = torch.func.vmap(loss)(torch.stack([x, -x]))
    torch.testing.assert_close(by_sample, torch.stack([loss(x), loss(-x)]))


@pytest.mark.parametrize("name", [pytest.param("supcon_loss", marks=exhaustive), "triplet_loss"])
def test_compiled_in_one_graph(name: str) -> None:
    x, y = sets("two sets", torch.float64)

    def loss(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        value: Tensor = getattr(pairops, name)(x, None, ref_emb=y, positives=(rows, cols))
        return value

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (100, 37):
        rows, cols = [z[:count] for z in CASES["two sets"][2]]
        ours, eager = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(ours, rows, cols).backward()
        loss(eager, rows, cols).backward()
        torch.testing.assert_close(ours.grad, eager.grad)


def test_where_nobody_looks_a_pair_out_of_range_is_none() -> None:
    x, labels = smooth(6, 3), torch.tensor([0, 1])

    def loss(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        return pairops.supcon_loss(x, None, positives=(rows, cols))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    rows, cols = torch.tensor([0, 1, 0, 2, 7, -1]), torch.tensor([3, 2, 9, -4, 1, 1])
    torch.testing.assert_close(compiled(x, rows, cols), loss(x, rows[:2], cols[:2]))
    for kind in (torch.uint16, torch.uint32, torch.uint64):
        given = labels.to(kind), torch.tensor([4, 5]).to(kind)
        torch.testing.assert_close(loss(x, *given), loss(x, labels, torch.tensor([4, 5])))
    with pytest.raises(ValueError, match=r"positives\[0\] go from 0 to 9223372036854775807"):
        loss(x, torch.tensor([0, 2**63 + 5], dtype=torch.uint64), labels)


ROWS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"positives": (ROWS, ROWS[:1])}, r"positives\[1\] has 1 entries and positives\[0\] 2"),
        ({"positives": (ROWS, ROWS + 5)}, r"positives\[1\] go from 5 to 6; .* from 0 to 5"),
        ({"positives": (torch.tensor([-1, 2]), ROWS)}, r"positives\[0\] go from -1 to 2"),
        ({"positives": (ROWS, torch.tensor([3, 1]))}, r"the pair \(1, 1\) of a row with itself"),
        ({"positives": (ROWS.float(), ROWS)}, r"positives\[0\] is torch.float32; it must be"),
        ({"positives": (ROWS[None], ROWS)}, r"positives\[0\] has shape \(1, 2\); it must be"),
        ({"positives": ([0, 1], ROWS)}, r"positives\[0\] is list"),
        ({"positives": ROWS}, r"positives is a torch.int64 tensor; it must be \(rows, cols\)"),
        ({"labels": torch.zeros(6).long()}, "labels is given with positives; it must be None"),
        ({"width": 1.0}, "width is given with positives; it must be None"),
        ({"ignore_index": 3}, "ignore_index is given with positives"),
        ({"ref_emb": torch.ones(6, 3), "ref_labels": ROWS}, "ref_labels is given with positives"),
        ({"positives": None}, "labels is NoneType; it must be an integer tensor"),
    ],
)  # fmt: skip
def test_bad_arguments(keywords: dict[str, Any], says: str) -> None:
    given = {"labels": None, "positives": (ROWS, ROWS.flip(0)), **keywords}
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.ms_loss(torch.ones(6, 3), **given)


def test_what_has_no_list() -> None:
    x = smooth(6, 3)
    with pytest.raises(ValueError, match="rows go from 0 to 9; they must be from 0 to 5"):
        Pairs.listed(x, torch.tensor([0, 9]), ROWS)
    with pytest.raises(ValueError, match=r"beta has 2 entries.*labels are None"):
        pairops.margin_loss(x, None, beta=torch.ones(2), positives=(ROWS, ROWS.flip(0)))
    kept = pairops.supcon_loss(
        x, None, ref_emb=x, exclude_self=False, positives=(ROWS, ROWS), reduction="none"
    )
    assert (kept[:2] > 0).all()
    with pairops.engine("cuda"), pytest.raises(ValueError, match="positives are a list"):
        pairops.ms_loss(x, None, positives=(ROWS, ROWS.flip(0)))
    assert {*WIDE, *NARROW} == {*SERVING, "cuda"}
    row_stats(Pairs.listed(x, ROWS, ROWS.flip(0)), lse(NEG, 1.0, 0.0))


def on_a_rank(group: Any, x: Tensor) -> str:
    with pytest.raises(ValueError, match="rows of one process") as found:
        pairops.ms_loss(x, None, positives=(ROWS, ROWS.flip(0)), group=group)
    return str(found.value)


@pytest.mark.xdist_group("ranks")
def test_ranks_refuse_a_list_by_name(ranks: Ranks) -> None:
    for found in ranks.run(2, "ops.pairs.test_lists:on_a_rank", [smooth(6, 3), smooth(5, 3)]):
        assert found.startswith("group is given with positives[0] and positives[1]"), found
