"""Positives within a width of a number, against the matrix of differences in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import NEG, POS, Pairs, lse, row_stats, total
from pairops.ops.row_stats import ring_blocks
from pairops.ops.row_stats.positive_rows import PositiveRows
from pairops.ops.terms.functions import one
from support.engine_names import HERE
from support.exhaustive import exhaustive, exhaustive_but
from support.gloo_ranks import Ranks
from support.loss_comparison import check
from support.loss_parameters import call
from support.named_cases import smooth
from support.on_cpu import device as device

INF, NAN = torch.inf, torch.nan


def random(n: int) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def integers(n: int, most: int) -> Tensor:
    return torch.randint(0, most, (n,), generator=torch.Generator().manual_seed(n))


# Numbers of the anchors and of the references, or None for one set, and a width.
CASES: dict[str, tuple[Tensor, Tensor | None, float]] = {
    "numbers": (random(40), None, 0.3),
    "two sets": (random(40), random(57), 0.3),
    "float32, whose bounds would be rounded": (0.1 * torch.arange(60).float(), None, 0.1),
    "float64, whose bounds would be rounded": (0.1 * torch.arange(60).double(), None, 0.1),
    "many equal": (integers(40, 5), integers(30, 9), 1.0),
    "equal alone": (integers(40, 5).half(), None, 0.0),
    "everyone": (random(40), random(20), 1e300),
    "nobody": (torch.arange(40) * 2.0, None, 1.0),
    "no numbers among them": (
        torch.tensor([NAN, 1.0, INF, -INF, NAN, 1.5, INF, -INF, 2.0]),
        torch.tensor([1.0, INF, NAN, -INF, 1.2, NAN]), 0.5,
    ),
    "no numbers, one set": (torch.tensor([NAN, 1.0, INF, -INF, NAN, 1.5, INF, -INF]), None, 0.5),
    "of every size": (
        torch.tensor([1e16, 1e16 + 2, 0.1, 0.1 + 2**-54, 1e300, -1e300, 0.3, 5e-324, 0.0]),
        torch.tensor([1e16 + 4, 0.2, 0.4, 0.30000000000000004, 1e300, 0.1, -5e-324]), 0.1,
    ),
    "several tiles": (random(130), random(230), 0.3),
    "several tiles of one set": (random(210), None, 0.2),
    "one row": (torch.tensor([3.0]), None, 1.0),
    "no rows": (torch.zeros(0), None, 1.0),
    "no references": (random(7), torch.zeros(0), 1.0),
}  # fmt: skip


def positives_of(values: Tensor, others: Tensor | None, width: float) -> Tensor:
    """The matrix (N, M) of them, without a row's own pair of one set."""
    mine = values.double()
    theirs = mine if others is None else others.double()
    found = (mine[:, None] - theirs).abs() <= width
    return found & ~torch.eye(len(mine), dtype=torch.bool) if others is None else found


def pairs_of(name: str, d: int = 5, dtype: torch.dtype = torch.float32, **keywords: Any) -> Pairs:
    values, others, width = CASES[name]
    x = smooth(len(values), d, dtype)
    y = {} if others is None else {"ref_emb": smooth(len(others), d, dtype), "ref_values": others}
    return Pairs.within(x, values, width, **y, **keywords)


@pytest.mark.usefixtures("engine", "small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("name", CASES)
def test_who_is_a_positive_of_whom(name: str) -> None:
    """Counted, and by sums of whole numbers that tell which."""
    truth = positives_of(*CASES[name])
    pairs = pairs_of(name)
    assert pairs.positives().tolist() == truth.sum(1).tolist()
    self_pairs = int(CASES[name][1] is None)
    assert pairs.counts()[1].tolist() == (~truth).sum(1).sub(self_pairs).tolist()
    n, m = pairs.shape
    if n == 0 or m == 0:
        return
    values, others, width = CASES[name]
    marks = torch.randint(1, 2**16, (m,))  # whose sum float32 holds exactly
    marked = Pairs.within(
        torch.ones(n, 1), values, width, ref_emb=marks[:, None].float(),
        ref_values=values if others is None else others, exclude_self=others is None,
        distance="dot",
    )  # fmt: skip
    (found,) = row_stats(marked, total(POS, 1.0, 0.0))
    assert found.tolist() == (truth * marks).sum(1).tolist()


@pytest.mark.parametrize("name", CASES)
def test_pairs_as_rows(name: str) -> None:
    truth = positives_of(*CASES[name]).nonzero().tolist()
    rows = PositiveRows.of(pairs_of(name))
    found = sorted(zip(rows.anchor.tolist(), rows.partner.tolist(), strict=True))
    assert [list(pair) for pair in found] == truth


@pytest.mark.usefixtures("wide_engine", "small_tiles")
@pytest.mark.parametrize(
    ("name", "loss", "params"),
    exhaustive_but(
        [
            (name, loss, params)
            for name in ("several tiles", "several tiles of one set")
            for loss, params in (
                ("triplet_loss", {"mining": "all", "margin": 0.3}),
                ("triplet_loss", {"mining": "semihard", "distance": "l2"}),
                ("lifted_structure_loss", {"form": "original"}),
            )
        ],
        lambda name, _loss, params: (name == "several tiles") == ("mining" in params),
    ),
)
def test_rows_whose_intervals_overlap(loss: str, params: dict[str, Any], name: str) -> None:
    """Each pair as a row, of more columns than a tile has."""
    values, others, width = CASES[name]
    x = smooth(len(values), 5, torch.float64).requires_grad_()
    given: dict[str, Any] = {"width": width, **params}
    if others is not None:
        given |= {"ref_emb": smooth(len(others), 5, torch.float64), "ref_labels": others}
    found = getattr(pairops, loss)(x, values, reduction="none", **given)
    truth = getattr(oracle, loss)(x, values, **given)
    torch.testing.assert_close(found, truth)
    ours, theirs = (torch.autograd.grad(z.square().sum(), x)[0] for z in (found, truth))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_rounded_bound_would_differ() -> None:
    """Or the care about it would be for nothing."""
    values, _, width = CASES["float32, whose bounds would be rounded"]
    truth = positives_of(values, None, width)
    ordered = values.sort().values
    low = torch.searchsorted(ordered, values - width)
    high = torch.searchsorted(ordered, values + width, right=True)
    assert (high - low - 1).tolist() != truth.sum(1).tolist()


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("supcon_loss", {"temperature": 0.2}),
    ("ms_loss", {"epsilon": None}),
    ("nt_xent_loss", {"temperature": 0.5}),
    ("contrastive_loss", {"pos_margin": 0.9, "neg_margin": 0.1}),
    ("triplet_loss", {"mining": "semihard"}),
    ("triplet_loss", {"mining": "hard", "distance": "l2"}),
    ("lifted_structure_loss", {}),
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("loss", "case"),
    exhaustive_but(
        itertools.product(
            LOSSES, ["numbers", "two sets", "many equal", "no numbers, one set", "one row"]
        ),
        lambda loss, case: case in ("numbers", "two sets") or loss[0] == "supcon_loss",
    ),
)
def test_losses_on_every_engine(loss: tuple[str, dict[str, Any]], case: str) -> None:
    name, params = loss
    values, others, width = CASES[case]
    tensors = [smooth(len(values), 9)] + ([] if others is None else [smooth(len(others), 9)])

    def other(y: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"ref_emb": y[0], "ref_labels": others} if y else {}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        return getattr(pairops, name)(
            x, values, width=width, reduction="none", **params, **other(y)
        )

    def formula(x: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        return getattr(oracle, name)(x, values, width=width, dtype=dtype, **params, **other(y))

    ran = check(tensors, ours, formula)
    assert set(ran) >= {"cpu", "blockwise", "dense"} & set(HERE)


def test_reductions_ids_and_self_pairs() -> None:
    values, _, width = CASES["many equal"]
    x = smooth(40, 5, torch.float64)
    given: dict[str, Any] = {"width": width, "temperature": 0.3}
    alone = pairops.supcon_loss(x, values, reduction="none", **given)
    ids = torch.randperm(40)
    by_ids = pairops.supcon_loss(
        x, values, ref_emb=x.clone(), ref_labels=values, ids=ids, ref_ids=ids, reduction="none",
        **given,
    )  # fmt: skip
    torch.testing.assert_close(by_ids, alone)
    mean = pairops.supcon_loss(x, values, **given)
    torch.testing.assert_close(mean, alone.mean())
    nonzero = pairops.supcon_loss(x, values, reduction="mean_nonzero", **given)
    torch.testing.assert_close(nonzero, alone[alone > 0].mean())


def loss_by_width(name: str) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """A loss of x and its values against other rows, an x, and values."""
    values, others, width = CASES["two sets"]
    assert others is not None
    y = smooth(57, 5, torch.float64)
    params = {"mining": "hard", "soft": True} if name == "triplet_loss" else {}

    def loss(x: Tensor, values: Tensor) -> Tensor:
        value: Tensor = getattr(pairops, name)(
            x, values, ref_emb=y, ref_labels=others, width=width, **params
        )
        return value

    return loss, smooth(40, 5, torch.float64), values


@pytest.mark.usefixtures("wide_engine")
@pytest.mark.parametrize("name", ["supcon_loss", "triplet_loss"])
def test_transforms(name: str) -> None:
    loss, x, values = loss_by_width(name)
    leaf = x.clone().requires_grad_()
    value = loss(leaf, values)
    (gradient,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x, values), gradient)
    by_sample = torch.func.vmap(loss)(torch.stack([x, -x]), torch.stack([values, values.flip(0)]))
    torch.testing.assert_close(by_sample, torch.stack([value, loss(-x, values.flip(0))]).detach())
    few = x[:6].clone().requires_grad_()
    torch.autograd.gradgradcheck(lambda z: loss(torch.cat([z, x[6:]]), values), (few,), atol=1e-5)


@pytest.mark.parametrize("name", ["supcon_loss", pytest.param("triplet_loss", marks=exhaustive)])
def test_compiled_in_one_graph(name: str) -> None:
    loss, x, values = loss_by_width(name)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (40, 23):
        ours, eager = [x[:n].clone().requires_grad_() for _ in range(2)]
        compiled(ours, values[:n]).backward()
        loss(eager, values[:n]).backward()
        torch.testing.assert_close(ours.grad, eager.grad)


def on_a_rank(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """A statistic of each kind, of rows and of columns, pairs as rows, and a gradient."""
    x = given["x"].clone().requires_grad_()
    other = {k: z for k, z in given.items() if k in ("ref_emb", "ref_values", "ids", "ref_ids")}
    before, ring_blocks.GATHERED = ring_blocks.GATHERED, given["gathered"]
    try:
        pairs = Pairs.within(x, given["values"], 0.4, **other, group=group)
        terms = [total(POS, function=one), lse(NEG, 2.0, 0.1), total(POS, 1.0, 0.0)]
        found = row_stats(pairs, *terms, cols=terms)
        rows = PositiveRows.of(pairs)
        (against,) = row_stats(rows.pairs, lse(NEG, 2.0, rows.score))
        of_pairs = rows.per_anchor(torch.nn.functional.softplus(against))
        sum((z.sum() for z in (*found, of_pairs)), x.new_zeros(())).backward()
    finally:
        ring_blocks.GATHERED = before
    assert x.grad is not None
    counts = torch.stack(pairs.counts(), 1)
    return [*[z.detach() for z in found[:3]], of_pairs.detach(), counts, x.grad]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("gathered", [0, 1 << 30], ids=["ring", "gathered"])
@pytest.mark.parametrize("sets", ["one set", "two sets", "named by ids"])
def test_over_ranks(ranks: Ranks, sets: str, gathered: int) -> None:
    n, m = 30, 23
    given: dict[str, Any] = {"x": smooth(n, 5, torch.float64), "values": random(n)}
    given["values"][3] = NAN
    if sets != "one set":
        given |= {"ref_emb": smooth(m, 5, torch.float64), "ref_values": random(m)}
    if sets == "named by ids":
        given |= {"ids": torch.arange(n), "ref_ids": torch.arange(m).flip(0)}
    truth = on_a_rank(None, {**given, "gathered": gathered})
    for rows, columns in (([11, 19], [20, 3]), ([1, 0, 29], [0, 9, 14])):
        parts = {
            key: z.split(columns if key.startswith("ref_") else rows) for key, z in given.items()
        }
        shares = [
            {**{key: z[k] for key, z in parts.items()}, "gathered": gathered}
            for k in range(len(rows))
        ]
        found = ranks.run(len(rows), "ops.pairs.test_widths:on_a_rank", shares)
        for k, right in enumerate(truth):
            assert all(isinstance(z, list) for z in found), found
            ours = torch.cat([results[k] for results in found])
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)


def test_a_loss_over_ranks(ranks: Ranks) -> None:
    assert callable(ranks.run)
    x, values = smooth(12, 5), random(12)
    alone = pairops.supcon_loss(x, values, width=0.5)
    torch.testing.assert_close(pairops.supcon_loss(x, values, width=0.5, group="auto"), alone)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"width": -0.1}, "width is -0.1; it must be a finite number, 0 or above"),
        ({"width": NAN}, "width is nan; it must be a finite number"),
        ({"width": INF}, "width is inf; it must be a finite number"),
        ({"width": "1"}, "width is str; it must be a number"),
        ({"width": True}, "width is bool; it must be a number"),
        ({"width": torch.tensor(1.0)}, "width is Tensor; it must be a number"),
        ({"width": 1.0, "ignore_index": 3}, "ignore_index is given with width"),
        ({"labels": torch.zeros(5)}, r"labels has shape \(5,\); it must be \(6,\)"),
        ({"labels": torch.zeros(6, dtype=torch.complex64)}, "labels is torch.complex64"),
        ({"labels": [1.0] * 6}, "labels is list"),
        ({"ref_emb": torch.ones(4, 3)}, "ref_labels is None; it must be given with ref_emb"),
        ({"ref_labels": torch.ones(4)}, "ref_labels is given without ref_emb"),
        ({"width": None}, "labels is torch.float32; it must be an integer tensor"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], says: str) -> None:
    given = {"labels": torch.zeros(6), "width": 1.0, **keywords}
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.ms_loss(torch.ones(6, 3), **given)


def test_bad_arguments_of_pairs_and_of_losses_that_know_classes() -> None:
    x, values = torch.ones(6, 3), torch.zeros(6)
    with pytest.raises(ValueError, match=r"values has shape \(5,\)"):
        Pairs.within(x, values[:5], 1.0)
    with pytest.raises(ValueError, match="ref_values is None; it must be given with ref_emb"):
        Pairs.within(x, values, 1.0, ref_emb=x.clone())
    with pytest.raises(ValueError, match="ref_values is given without ref_emb"):
        Pairs.within(x, values, 1.0, ref_values=values)
    with pytest.raises(ValueError, match=r"beta has 3 entries.*labels are numbers"):
        pairops.margin_loss(x, values, beta=torch.ones(3), width=1.0)
    for name in ("uniformity_loss", "n_pair_loss", "proxy_anchor_loss"):
        with pytest.raises(TypeError, match=rf"{name}\(\) has no keyword 'width'"):
            call(name, x, width=1.0)
