"""`highest(..., index=True)`: the partner of an extreme, against a search of the whole matrix."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from oracle.rows import Rows
from pairops import ALL, NEG, POS, Pairs, Term, highest, lowest, lse, row_stats, total
from pairops.ops.terms.functions import affine
from support.engine_names import HERE, TRITON
from support.exhaustive import exhaustive_but
from support.gloo_ranks import Ranks
from support.named_cases import CASES, Case
from support.on_cpu import device as device

# Those of cuda; the rest of the engines serve all.
EVERYWHERE: list[tuple[Callable[..., Term], str]] = [(lowest, POS), (highest, NEG)]
OTHERS = [(highest, POS), (lowest, NEG), (highest, ALL), (lowest, ALL)]
INFINITE = {lowest: torch.inf, highest: -torch.inf}


def integers(n: int, d: int) -> Tensor:
    """Rows whose products are exact in any engine, and often equal."""
    return torch.randint(-2, 3, (n, d)).float()


def searched(
    case: Case, make: Callable[..., Term], side: str, of_columns: bool = False, **window: float
) -> tuple[Tensor, Tensor]:
    """The extreme of every owner, and the first partner that attains it, of the naive matrix."""
    given = {
        k: z for k, z in case.keywords.items() if k in ("ref_emb", "ref_labels", "ignore_index")
    }
    rows = Rows(case.x, case.labels, **given, **case.oracle, distance="dot")
    ignored = given.get("ignore_index", -100)
    others = given.get("ref_labels", case.labels)
    kept = (
        torch.arange(len(others)) if ignored is None else (others.long() != ignored).nonzero()[:, 0]
    )
    selected = {POS: rows.positive, NEG: rows.negative}.get(side, rows.positive | rows.negative)
    t, owners, partners = rows.t, rows.anchors, kept
    if of_columns:
        t, selected, owners, partners = t.T, selected.T, kept, rows.anchors
    if "below" in window:
        selected = selected & (t < window["below"])
    value = torch.full((len(others) if of_columns else len(case.x),), INFINITE[make]).double()
    index = torch.full_like(value, -1, dtype=torch.int64)
    for row, owner in enumerate(owners.tolist()):
        found = selected[row].nonzero()[:, 0]
        if len(found):
            of_owner = t[row, found]
            best = of_owner.max() if make is highest else of_owner.min()
            value[owner] = best
            index[owner] = partners[found[of_owner == best][0]]
    return value, index


def pairs_of(case: Case) -> Pairs:
    return Pairs.of(case.x, case.labels, **{**case.keywords, "distance": "dot"})


def check(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> None:
    value, index = found
    assert index.dtype == torch.int64
    assert not index.requires_grad
    torch.testing.assert_close(value.detach().double(), truth[0], rtol=0, atol=0)
    assert index.tolist() == truth[1].tolist()


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize(
    ("engine", "name"),
    exhaustive_but(
        # The products of one case are not exact.
        itertools.product(HERE, [name for name in CASES if name != "dot_products"]),
        lambda engine, name: (
            name in ("ignored_rows", "named_by_ids", "no_references")
            or (name == "ragged" and engine not in TRITON)
        ),
    ),
    indirect=["engine"],
)
def test_of_rows_and_of_columns(engine: str, name: str) -> None:
    case = CASES[name](integers)
    asked = EVERYWHERE if engine == "cuda" else EVERYWHERE + OTHERS
    terms = [make(side, index=True) for make, side in asked]
    for needs_grad in (False, True):
        case.x.requires_grad_(needs_grad)
        pairs = pairs_of(case)
        for of_columns in (False, True):
            found = row_stats(pairs, cols=terms) if of_columns else row_stats(pairs, *terms)
            for (make, side), one in zip(asked, found, strict=True):
                check(one, searched(case, make, side, of_columns))


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
def test_inside_a_window_and_beside_other_terms(engine: str) -> None:
    """The entries of other terms are tensors, in their places; those that need an argument for
    their gradient too."""
    case = CASES["ragged"](integers)
    case.x.requires_grad_()
    near = highest(NEG, below=7.0, index=True)
    terms = [lse(NEG, 0.1, 0.0), highest(NEG), near, lowest(POS, index=True)]
    if engine == "cuda":
        terms = terms[1:]
    found = row_stats(pairs_of(case), *terms)
    check(found[terms.index(near)], searched(case, highest, NEG, below=7.0))
    check(found[-1], searched(case, lowest, POS))
    assert all(isinstance(z, Tensor) for z in found[: terms.index(near)])


@pytest.mark.usefixtures("open_engine")
@pytest.mark.parametrize("distance", ["cosine", "l2", "sqeuclidean", "snr"])
def test_an_empty_window_has_nobody(distance: str) -> None:
    x = torch.randn(5, 4)
    pairs = Pairs.of(x, torch.zeros(5).long(), distance=distance)  # type: ignore[arg-type]
    terms = highest(POS, above=1.5, index=True), lowest(POS, below=-100.0, index=True)
    for value, index in row_stats(pairs, *terms):
        assert value.isinf().all()
        assert index.tolist() == [-1] * 5


@pytest.mark.usefixtures("engine")
def test_an_earlier_term_may_have_one() -> None:
    case = CASES["square"](integers)
    far = lowest(POS, 1.0, 0.0, function=affine, index=True)
    if not _served(pairs_of(case), far):
        pytest.skip("it is not compiled for this engine")
    (value, index), _ = row_stats(pairs_of(case), far, lse(NEG, 0.1, 0.0, above=far))
    check((value, index), searched(case, lowest, POS))


def _served(pairs: Pairs, term: Term) -> bool:
    try:
        row_stats(pairs, term)
    except ValueError as error:
        return "cannot serve this call" not in str(error)
    return True


@pytest.mark.usefixtures("engine")
def test_the_value_keeps_its_gradient() -> None:
    """To any order, and whether or not the index is used."""
    case = CASES["square"](integers)
    x = case.x.requires_grad_()
    ((value, index),) = row_stats(pairs_of(case), highest(NEG, index=True))
    (found,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    by_hand = (x * x.detach()[index]).sum() + (x.detach() * x[index]).sum()
    (truth,) = torch.autograd.grad(by_hand, x)
    torch.testing.assert_close(found, truth)
    (second,) = torch.autograd.grad(found.square().sum(), x)
    pairs = x[index]
    by_hand = torch.zeros_like(x).index_add(0, index, x) + pairs
    (truth,) = torch.autograd.grad(by_hand.square().sum(), x)
    torch.testing.assert_close(second, truth)


@pytest.mark.usefixtures("wide_engine")
def test_transforms_and_the_compiler() -> None:
    case = CASES["ragged"](integers)

    def value(x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = Pairs.of(x, case.labels, **{**case.keywords, "distance": "dot"})
        ((value, index),) = row_stats(pairs, highest(NEG, index=True))
        return value.sum(), index

    x = case.x.double()
    case.keywords["ref_emb"] = case.keywords["ref_emb"].double()
    _, truth = searched(case, highest, NEG)
    leaf = x.clone().requires_grad_()
    value(leaf)[0].backward()
    gradient, index = torch.func.grad(value, has_aux=True)(x)
    assert index.tolist() == truth.tolist()
    torch.testing.assert_close(gradient, leaf.grad)
    compiled = torch.compile(value, fullgraph=True, dynamic=True, backend="aot_eager")
    again = x.clone().requires_grad_()
    whole, index = compiled(again)
    whole.backward()
    assert index.tolist() == truth.tolist()
    torch.testing.assert_close(again.grad, leaf.grad)


def on_a_rank(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """Indices of rows and of columns, and the gradient of a value."""
    x = given["x"].clone().requires_grad_()
    other = {k: z for k, z in given.items() if k in ("ref_emb", "ref_labels")}
    pairs = Pairs.of(x, given["labels"], **other, distance="dot", group=group)
    term = highest(NEG, index=True)
    (value, index), plain, (_, of_columns) = row_stats(
        pairs, term, total(POS, 1.0, 0.0), cols=[lowest(POS, index=True)]
    )
    (value.sum() + plain.sum()).backward()
    assert x.grad is not None
    return [index, of_columns, x.grad]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("two_sets", [False, True])
def test_over_ranks_it_is_the_row_of_all_of_them(ranks: Ranks, two_sets: bool) -> None:
    case = CASES["ragged" if two_sets else "ignored_rows"](integers)
    given = {"x": case.x, "labels": case.labels, **case.keywords}
    truth = on_a_rank(None, given)
    n, m = len(case.x), len(case.keywords.get("ref_emb", case.x))
    for rows, columns in (([n - 20, 20], [m - 31, 31]), ([n - 1, 0, 1], [0, m - 7, 7])):
        sizes = {"x": rows, "labels": rows, "ref_emb": columns, "ref_labels": columns}
        parts = {key: z.split(sizes[key]) for key, z in given.items()}
        shares = [{key: z[k] for key, z in parts.items()} for k in range(len(rows))]
        found = ranks.run(len(rows), "ops.row_stats.test_index:on_a_rank", shares)
        for k, one in enumerate(truth):
            torch.testing.assert_close(torch.cat([results[k] for results in found]), one)


def test_what_it_may_not_be() -> None:
    with pytest.raises(ValueError, match="index is True for a sum; it must be False"):
        Term("sum", POS, affine, (1.0, 0.0), index=True)
    with pytest.raises(ValueError, match=r"grad is False and index True.*value\.detach\(\)"):
        highest(NEG, grad=False, index=True)
    with pytest.raises(TypeError, match="index is int"):
        highest(NEG, index=1)  # type: ignore[arg-type]
