"""Every loss × engine × named case against the naive float64 formulas: values and gradients."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from conftest import HERE, NARROW, WIDE, assert_within_rule, gradients
from support.loss_parameters import (  # fmt: skip
    AGAINST_PROXIES,
    FEW,
    LABELLED,
    ONE_SET,
    THOROUGH,
    TWO_SETS,
    mined,
    parameters,
    variants,
    with_rest,
)
from support.named_cases import CASES, Case, embeddings, separated, smaller, smooth

Result = list[Tensor]


def engines_for(name: str, params: dict[str, Any], case: str = "") -> list[str]:
    if params != parameters(name)[0]:
        return [e for e in HERE if e in WIDE or (e == "triton" and case in FEW)]
    return HERE if name in THOROUGH else [e for e in HERE if e not in NARROW or e == "triton"]


def check(
    tensors: list[Tensor],
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    engines: Sequence[str] = tuple(HERE),
    reciprocal: bool = True,
    several: bool = False,
) -> list[str]:
    """Per-anchor losses and gradients by `tensors` on these engines, by the error rule.

    ours(*tensors) is the library, formula(*tensors, dtype=) the oracle. The oracle is the slow
    part, so it runs once for all engines. Returns those that served the call.
    """
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    weight = 0.5 + torch.rand(max(len(z) for z in tensors), dtype=torch.float64)

    def run(function: Callable[..., Tensor], like: torch.dtype, shift: int = 0) -> Result:
        mine = [z.detach().to(like).roll(shift, 1).requires_grad_() for z in tensors]
        values = function(*mine)
        found = gradients(lambda: values, mine, weight[: len(values)].to(values.dtype))
        return [values.detach(), *[g.roll(-shift, 1) for g in found]]

    stored = tensors[0].dtype
    # In float64 the truth is dense torch itself, so its rounding error is told by what should not
    # matter: the order of the features, and whether a norm is divided by or its inverse multiplied.
    # So of distances, which are differences of large numbers.
    shifts = (1, 3, 7) if wide == torch.float64 else (0, 1, 3) if several else (0,)
    dense = [run(functools.partial(formula, dtype=wide), stored, shift) for shift in shifts]
    if wide == torch.float64 and reciprocal:
        scaled = functools.partial(by_reciprocal, formula)
        dense += [run(scaled, stored, shift) for shift in shifts]
    truth = run(functools.partial(formula, dtype=torch.float64), torch.float64)
    ran = []
    for engine in engines:
        if wide == torch.float64 and engine not in WIDE:
            continue
        with pairops.use(engine):
            try:
                found = run(ours, stored)
            except ValueError as error:
                if "cannot serve this call" not in str(error):
                    raise
                continue
        ran.append(engine)
        for k, what in enumerate(["losses", "dx", "dy"][: len(found)]):
            assert_within_rule(f"{engine}: {what}", found[k], [d[k] for d in dense], truth[k])
    return ran


def by_reciprocal(formula: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    unit = [z * (1 / z.norm(dim=1, keepdim=True)) for z in tensors]
    return formula(*unit, dtype=torch.float64, normalize=False)


def compare(name: str, params: dict[str, Any], case: Case, engines: Sequence[str]) -> list[str]:
    """`check` of a labelled loss."""
    params = {**params, **{k: case.keywords[k] for k in ("distance",) if k in case.keywords}}
    if params.get("distance") == "dot":
        params.pop("normalize", None)
    other = case.keywords.get("ref_emb")
    constant = {k: v for k, v in case.keywords.items() if k not in ("ref_emb", "distance")}
    for_oracle = {k: v for k, v in constant.items() if k in ("ignore_index", "ref_labels")}

    def reference(y: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {} if other is None else {"ref_emb": y[0] if y else other}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        given = {**params, **constant, **reference(y)}
        return getattr(pairops, name)(x, case.labels, **given, reduction="none")

    def formula(x: Tensor, *y: Tensor, **changed: Any) -> Tensor:
        given = {**params, **for_oracle, **case.oracle, **reference(y), **changed}
        return getattr(oracle, name)(x, case.labels, **given)

    tensors = [case.x] if other is None or not case.y_grad else [case.x, other]
    unit = params.get("distance", "dot" if name in ONE_SET else "") != "dot"
    reciprocal = unit and params.get("normalize", True)
    return check(tensors, ours, formula, engines, reciprocal, not similar(name, params))


def case_for(
    name: str, params: dict[str, Any], maker: Callable[..., Case], dtype: torch.dtype
) -> Case:
    # Of all triplets many are near their kink where no feature tells classes apart.
    apart = params.get("mining") == "all"
    make = embeddings if mined(name, params) or apart else smooth
    case = maker(lambda n, d: make(n, d, dtype))
    if params.get("mining") == "semihard":  # of a million triplets one is within rounding
        case = smaller(case)
    return separated(case) if apart else case


def fits(name: str, params: dict[str, Any], case: Case) -> bool:
    """Has the loss what the case is about?"""
    similar = case.keywords.get("distance") == "dot"
    only_distances = similar and "neg_margin" in params and params.get("normalize") is False
    alone = {"ignore_index"} | ({"distance"} if params.get("distance") is None else set())
    return not only_distances and (name not in ONE_SET or set(case.keywords) <= alone)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "params"), variants(LABELLED))
def test_named_cases(name: str, params: dict[str, Any], case: str) -> None:
    found = case_for(name, params, CASES[case], torch.float32)
    if fits(name, params, found):
        wanted = engines_for(name, params, case)
        ran = compare(name, params, found, wanted)
        assert set(wanted) - {"native"} <= set(ran)
        # The recipes are of similarities.
        assert ("native" in ran) == similar(name, {**params, **found.keywords})


def similar(name: str, params: dict[str, Any]) -> bool:
    own = {"lifted_structure_loss": "l2", "margin_loss": "l2", "nca_loss": "sqeuclidean"}
    return params.get("distance", own.get(name, "cosine")) in ("cosine", "dot")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "params"), variants(LABELLED))
def test_dtypes(name: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    shape = "ragged" if name in THOROUGH and params == parameters(name)[0] else "square"
    compare(name, params, case_for(name, params, CASES[shape], dtype), engines_for(name, params))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        *[(name, {}) for name in LABELLED if name in THOROUGH],
        ("contrastive_loss", {"distance": "l2"}),
    ],
)
def test_full_tiles(name: str, params: dict[str, Any]) -> None:
    """Two by two tiles of their real size, ragged. (In Triton's interpreter those are small.)"""

    def maker(make: Callable[..., Tensor]) -> Case:
        return Case(make(1100, 37), torch.randint(0, 300, (1100,)))

    compare(name, params, case_for(name, params, maker, torch.float32), WIDE)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ms_loss", {"alpha": 200.0, "beta": 5000.0}),
        ("supcon_loss", {"temperature": 1e-3}),
        ("nt_xent_loss", {"temperature": 1e-3}),
        ("circle_loss", {"gamma": 1e4}),
        ("binomial_deviance_loss", {"alpha": 1e4, "beta": 1e4}),
        ("contrastive_loss", {"pos_margin": 1e4, "neg_margin": -1e4}),
        ("triplet_loss", {"margin": 1e4}),
    ],
)
def test_huge_logits(name: str, params: dict[str, Any]) -> None:
    compare(name, params, case_for(name, params, CASES["square"], torch.float32), HERE)


PROXY_CASES = ("square", "one_row", "no_rows", "zero_vectors", "ignored_rows")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", PROXY_CASES)
@pytest.mark.parametrize(("name", "params"), variants(AGAINST_PROXIES))
def test_against_proxies(name: str, params: dict[str, Any], case: str, dtype: torch.dtype) -> None:
    """More classes than the batch has; losses are one per proxy, or one per row."""
    made = case_for(name, params, CASES[case], dtype)
    proxies = smooth(14, made.x.shape[1], dtype)
    given = {**params, **made.keywords}

    def ours(x: Tensor, proxies: Tensor) -> Tensor:
        return getattr(pairops, name)(x, made.labels, proxies, **given, reduction="none")

    def formula(x: Tensor, proxies: Tensor, **changed: Any) -> Tensor:
        return getattr(oracle, name)(x, made.labels, proxies, **{**given, **changed})

    check([made.x, proxies], ours, formula, engines_for(name, params))


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
    loss, formula = getattr(pairops, name), getattr(oracle, name)

    def run(function: Callable[..., Tensor], x: Tensor, y: Tensor, **keywords: Any) -> Tensor:
        rest, told = with_rest(name, x, y)
        return function(x, *rest, **told, **params, **keywords)

    check(
        [x, y],
        functools.partial(run, loss, reduction="none"),
        functools.partial(run, formula),
        engines_for(name, params),
    )


@pytest.mark.usefixtures("small_tiles", "engine")
@pytest.mark.parametrize("name", ["info_nce_loss", "siglip_loss"])
def test_one_frozen_set(name: str) -> None:
    params = parameters(name)[0]
    x, y = smooth(40, 9).requires_grad_(), smooth(40, 9).requires_grad_()
    both = torch.autograd.grad(getattr(pairops, name)(x, y, **params), [x, y])
    for k, (left, right) in enumerate(((x, y.detach()), (x.detach(), y))):
        (alone,) = torch.autograd.grad(getattr(pairops, name)(left, right, **params), [(x, y)[k]])
        assert torch.equal(alone, both[k])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n", "m"), [(1, 5), (40, 41), (60, 151)])
def test_hard_negatives_of_info_nce(n: int, m: int, symmetric: bool) -> None:
    """Rows of y without a partner are negatives of every x."""
    check(
        [smooth(n, 24), smooth(m, 24)],
        functools.partial(pairops.info_nce_loss, symmetric=symmetric, reduction="none"),
        functools.partial(oracle.info_nce_loss, symmetric=symmetric),
    )


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
