"""Every loss × engine × named case against the naive float64 formulas: values and gradients."""

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import formulas
import pytest
import torch
from cases import CASES, Case, embeddings, smooth
from conftest import HERE, WIDE, assert_within_rule, gradients
from torch import Tensor

import pairops
from pairops import losses

Result = list[Tensor]

# A loss is picked up by existing; these are the parameter sets beyond its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ms_loss": [{"epsilon": None}, {"alpha": 3.0, "beta": 40.0, "base": 0.3}],
    "contrastive_loss": [{"pos_margin": 0.8, "neg_margin": 0.1}],
    "supcon_loss": [{"temperature": 0.5}],
    "triplet_loss": [{"margin": 0.4}],
    "info_nce_loss": [{"temperature": 0.5}],
    "siglip_loss": [{"scale": 10.0, "bias": -10.0}, {"scale": 0.0, "bias": 0.0}],
}
TWO_SETS = [n for n in losses.__all__ if "y" in inspect.signature(getattr(losses, n)).parameters]
LABELLED = [name for name in losses.__all__ if name not in TWO_SETS]


def parameters(name: str) -> list[dict[str, Any]]:
    required = any(
        p.default is p.empty and p.kind is p.KEYWORD_ONLY
        for p in inspect.signature(getattr(losses, name)).parameters.values()
    )
    return ([] if required else [{}]) + VARIANTS.get(name, [])


def variants(names: list[str]) -> list[Any]:
    return [
        pytest.param(name, params, id="-".join([name, *(f"{k}={v}" for k, v in params.items())]))
        for name in names
        for params in parameters(name)
    ]


def mined(name: str, params: dict[str, Any]) -> bool:
    return name == "ms_loss" and params.get("epsilon", 0.1) is not None


def check(
    tensors: list[Tensor],
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    engines: Sequence[str] = tuple(HERE),
) -> None:
    """Per-anchor losses and gradients by `tensors` on these engines, by the error rule.

    ours(*tensors) is the library, formula(*tensors, dtype=) the oracle. The oracle is the slow
    part, so it runs once for all engines.
    """
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    weight = 0.5 + torch.rand(len(tensors[0]), dtype=torch.float64)

    def run(function: Callable[..., Tensor], like: torch.dtype, shift: int = 0) -> Result:
        mine = [z.detach().to(like).roll(shift, 1).requires_grad_() for z in tensors]
        values = function(*mine)
        found = gradients(lambda: values, mine, weight.to(values.dtype))
        return [values.detach(), *[g.roll(-shift, 1) for g in found]]

    stored = tensors[0].dtype
    # In float64 the truth is dense torch itself, so its rounding error is told by what should not
    # matter: the order of the features, and whether a norm is divided by or its inverse multiplied.
    shifts = (1, 3, 7) if wide == torch.float64 else (0,)
    dense = [run(functools.partial(formula, dtype=wide), stored, shift) for shift in shifts]
    if wide == torch.float64:
        reciprocal = functools.partial(by_reciprocal, formula)
        dense += [run(reciprocal, stored, shift) for shift in shifts]
    truth = run(functools.partial(formula, dtype=torch.float64), torch.float64)
    for engine in WIDE if wide == torch.float64 else engines:
        with pairops.use(engine):
            found = run(ours, stored)
        for k, what in enumerate(["losses", "dx", "dy"][: len(found)]):
            assert_within_rule(f"{engine}: {what}", found[k], [d[k] for d in dense], truth[k])


def by_reciprocal(formula: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    unit = [z * (1 / z.norm(dim=1, keepdim=True)) for z in tensors]
    return formula(*unit, dtype=torch.float64, normalize=False)


def compare(
    name: str, params: dict[str, Any], case: Case, engines: Sequence[str] = tuple(HERE)
) -> None:
    """`check` of a labelled loss."""
    other = case.keywords.get("ref_emb")
    constant = {k: v for k, v in case.keywords.items() if k != "ref_emb"}
    oracle = {k: v for k, v in constant.items() if k in ("normalize", "ignore_index", "ref_labels")}

    def reference(y: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {} if other is None else {"ref_emb": y[0] if y else other}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        given = {**params, **constant, **reference(y)}
        return getattr(pairops, name)(x, case.labels, **given, reduction="none")

    def formula(x: Tensor, *y: Tensor, **changed: Any) -> Tensor:
        given = {**params, **oracle, **case.oracle, **reference(y), **changed}
        return getattr(formulas, name)(x, case.labels, **given)

    check([case.x] if other is None or not case.y_grad else [case.x, other], ours, formula, engines)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "params"), variants(LABELLED))
def test_named_cases(name: str, params: dict[str, Any], case: str) -> None:
    make = embeddings if mined(name, params) else smooth
    # The chunked path differs from triton's in what does not depend on a loss's parameters.
    first = params == parameters(name)[0]
    compare(name, params, CASES[case](make), HERE if first else [e for e in HERE if e != "chunked"])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "params"), variants(LABELLED))
def test_dtypes(name: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    make = embeddings if mined(name, params) else smooth
    compare(name, params, CASES["ragged"](lambda n, d: make(n, d, dtype)))


@pytest.mark.parametrize(("name", "params"), variants(LABELLED))
def test_full_tiles(name: str, params: dict[str, Any]) -> None:
    """Two by two tiles of their real size, ragged. (In Triton's interpreter those are small.)"""
    make = embeddings if mined(name, params) else smooth
    labels = torch.randint(0, 300, (1100,))
    compare(name, params, Case(make(1100, 37), labels), WIDE)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ms_loss", {"alpha": 200.0, "beta": 5000.0}),
        ("supcon_loss", {"temperature": 1e-3}),
        ("contrastive_loss", {"pos_margin": 1e4, "neg_margin": -1e4}),
        ("triplet_loss", {"margin": 1e4}),
    ],
)
def test_huge_logits(name: str, params: dict[str, Any]) -> None:
    make = embeddings if mined(name, params) else smooth
    compare(name, params, CASES["square"](make))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("n", "d", "dtype"),
    [
        *itertools.product([0, 1, 2, 96], [37], [torch.float32]),
        *itertools.product([151], [24], [torch.float16, torch.bfloat16, torch.float64]),
    ],
)
@pytest.mark.parametrize(("name", "params"), variants(TWO_SETS))
def test_two_sets(name: str, params: dict[str, Any], n: int, d: int, dtype: torch.dtype) -> None:
    x, y = smooth(n, d, dtype), smooth(n, d, dtype)
    if n == 96:
        x[3] = 0
        y[5] = 0
        y[7] = y[8]
    loss, formula = getattr(pairops, name), getattr(formulas, name)
    check(
        [x, y],
        functools.partial(loss, **params, reduction="none"),
        functools.partial(formula, **params),
    )


@pytest.mark.usefixtures("small_tiles", "engine")
@pytest.mark.parametrize("name", TWO_SETS)
def test_one_frozen_set(name: str) -> None:
    params = parameters(name)[0]
    x, y = smooth(40, 9).requires_grad_(), smooth(40, 9).requires_grad_()
    both = torch.autograd.grad(getattr(pairops, name)(x, y, **params), [x, y])
    for k, (left, right) in enumerate(((x, y.detach()), (x.detach(), y))):
        (alone,) = torch.autograd.grad(getattr(pairops, name)(left, right, **params), [(x, y)[k]])
        assert torch.equal(alone, both[k])


@pytest.mark.usefixtures("small_tiles", "wide_engine")
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LABELLED)
def test_reductions(name: str, weighted: bool, reduction: str) -> None:
    x = smooth(60, 9, torch.float64).requires_grad_()
    labels = torch.cat([torch.arange(30), torch.arange(30, 33).repeat(10)])
    labels[[4, 40]] = -100
    weight = torch.rand(60, dtype=torch.float64).requires_grad_() if weighted else None
    leaves = [x] if weight is None else [x, weight]
    result = getattr(pairops, name)(x, labels, weight=weight, reduction=reduction)
    expected = formulas.reduce(
        getattr(formulas, name)(x, labels),
        weight=weight,
        reduction=reduction,
        ignored=labels == -100,
    )
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(result.sum(), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_tiles", "engine")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("name", "params"), variants(losses.__all__))
def test_a_bad_row_shows(
    name: str,
    params: dict[str, Any],
    normalize: bool,
    bad: float,
) -> None:
    """NaN or Inf in a row reaches the loss and that row's gradient, with mining on too."""
    x = smooth(60, 9)
    x[13, 4] = bad
    x.requires_grad_()
    other = smooth(60, 9) if name in TWO_SETS else torch.randint(0, 6, (60,))
    value = getattr(pairops, name)(x, other, normalize=normalize, **params)
    assert not torch.isfinite(value)
    (gradient,) = torch.autograd.grad(value, x)
    assert not torch.isfinite(gradient[13]).all()


@pytest.mark.usefixtures("small_tiles", "engine")
@pytest.mark.parametrize("name", LABELLED)
def test_what_an_ignored_row_holds_does_not_matter(name: str) -> None:
    x, labels = smooth(60, 9), torch.randint(0, 6, (60,))
    labels[[3, 44]] = -100
    results = []
    for filler in (0.0, 1.0, float("nan"), float("inf")):
        mine = x.clone()
        mine[[3, 44]] = filler
        mine.requires_grad_()
        value = getattr(pairops, name)(mine, labels)
        (gradient,) = torch.autograd.grad(value, mine)
        assert bool((gradient[[3, 44]] == 0).all())
        results.append((value.detach(), gradient))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", LABELLED)
def test_whole_batches_without_a_side(name: str) -> None:
    """What a batch without positives, or negatives, is worth; and it stays differentiable."""
    x = smooth(12, 9).requires_grad_()
    no_positives = getattr(pairops, name)(x, torch.arange(12))
    no_negatives = getattr(pairops, name)(x, torch.zeros(12, dtype=torch.int64))
    assert (no_positives > 0) == (name == "contrastive_loss")
    assert (no_negatives > 0) == (name in ("contrastive_loss", "supcon_loss"))
    for value in (no_positives, no_negatives):
        (gradient,) = torch.autograd.grad(value, x)
        assert bool(torch.isfinite(gradient).all())
        assert bool((gradient != 0).any()) == bool(value > 0)


@pytest.mark.usefixtures("engine")
def test_unmined_negatives_count_for_an_anchor_without_positives() -> None:
    x = smooth(12, 9)
    assert pairops.ms_loss(x, torch.arange(12), epsilon=None) > 0
    assert pairops.ms_loss(x, torch.arange(12)) == 0


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.usefixtures("engine")
def test_the_weight_of_an_ignored_anchor_does_not_matter(name: str, reduction: str) -> None:
    x, labels, weight = smooth(20, 5), torch.arange(20) % 4, torch.ones(20)
    labels[3], weight[3] = -100, torch.nan
    weight.requires_grad_()
    value = getattr(pairops, name)(x, labels, weight=weight, reduction=reduction)
    (gradient,) = torch.autograd.grad(value.sum(), weight)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_temperature_is_read_exactly(dtype: torch.dtype) -> None:
    x, labels, t = smooth(20, 5), torch.arange(20) % 4, torch.tensor(0.07, dtype=dtype)
    ours = pairops.supcon_loss(x, labels, temperature=t)
    assert torch.equal(ours, pairops.supcon_loss(x, labels, temperature=float(t)))


@pytest.mark.parametrize("n", [1026, 1029, 2049])
def test_ties_between_duplicates_at_full_tiles(n: int) -> None:
    """Equal columns have equal bits, so a tie goes to the lowest index, also in the last tile."""
    x = smooth(n // 3, 64).repeat(3, 1)
    x = torch.cat([x, smooth(n - len(x), 64)])
    labels = torch.arange(n)
    labels[-2:] = 0
    rank = torch.randperm(n)
    x, labels = x[rank].requires_grad_(), labels[rank]
    (near,) = pairops.row_stats(pairops.Pairs.of(x, labels), pairops.highest(pairops.NEG))
    (gradient,) = torch.autograd.grad(near.sum(), x)
    with torch.no_grad():
        s = torch.nn.functional.normalize(x.double())
        s = (s @ s.T).masked_fill(labels[:, None] == labels, -2).round(decimals=9)
        first = s.argmax(1)
    y = x.detach().double().requires_grad_()
    unit = torch.nn.functional.normalize(y)
    (truth,) = torch.autograd.grad((unit * unit[first]).sum(), y)
    torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-5)
