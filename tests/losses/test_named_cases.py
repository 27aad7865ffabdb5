"""Every loss × named case against the naive float64 formulas: values and gradients."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.engine_names import HERE, WIDE
from support.exhaustive import exhaustive_but
from support.loss_comparison import case_for, check, compare, fits, of_two_sets
from support.loss_parameters import (  # fmt: skip
    AGAINST_PROXIES,
    LABELLED,
    NOT_COMPILED,
    THOROUGH,
    TWO_SETS,
    is_first,
    parameters,
    variants,
)
from support.named_cases import CASES, Case, smaller, smooth

# What a form of a loss may take otherwise; who is whose pair it does not know.
UNLIKE = (
    "square", "ragged", "one_row", "no_rows", "no_references", "one_class", "all_distinct",
    "some_alone", "named_by_ids", "zero_vectors", "ignored_rows",
)  # fmt: skip


def engines_for(name: str, params: dict[str, Any], case: str = "") -> list[str]:
    """All, for three losses; for the rest the engines in torch, and once the compiled one."""
    if name in THOROUGH and is_first(name, params):
        return HERE
    compiled = case in ("", "square") and name not in NOT_COMPILED
    return [e for e in WIDE if e != "cpu" or compiled]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "params", "case"),
    exhaustive_but(
        [
            pytest.param(*loss.values, case, id=f"{loss.id}-{case}")
            for loss in variants(LABELLED)
            for case in CASES
        ],
        lambda name, params, case: is_first(name, params) or case in UNLIKE,
    ),
)
def test_named_cases(name: str, params: dict[str, Any], case: str) -> None:
    found = smaller(case_for(name, params, CASES[case], torch.float32))
    if fits(name, params, found):
        wanted = engines_for(name, params, case)
        ran = compare(name, params, found, wanted)
        assert set(wanted) <= set(ran)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "params"), exhaustive_but(variants(LABELLED), is_first))
def test_dtypes(name: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    shape = "ragged" if name in THOROUGH and is_first(name, params) else "square"
    case = smaller(case_for(name, params, CASES[shape], dtype))
    compare(name, params, case, engines_for(name, params))


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
    ("name", "params", "n", "d", "dtype"),
    exhaustive_but(
        [
            pytest.param(*loss.values, n, d, dtype, id=f"{loss.id}-{n}-{dtype}")
            for loss in variants(TWO_SETS)
            for n, d, dtype in (
                *itertools.product([0, 1, 2, 96], [37], [torch.float32]),
                *itertools.product([151], [24], [torch.float16, torch.bfloat16, torch.float64]),
            )
        ],
        lambda name, params, n, d, dtype: is_first(name, params) or n == 96,  # noqa: ARG005
    ),
)
def test_two_sets(name: str, params: dict[str, Any], n: int, d: int, dtype: torch.dtype) -> None:
    if name == "auc_loss" and dtype == torch.float16:  # a sum over N² pairs passes its range
        n = 40
    x, y = smooth(n, d, dtype), smooth(n, d, dtype)
    if n == 96:
        x[3] = 0
        y[5] = 0
        y[7] = y[8]
    check(*of_two_sets(name, params, x, y), engines_for(name, params))


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


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 96])
def test_each_pair_s_own_relevance_of_sms(n: int, dtype: torch.dtype) -> None:
    """Of some it is 0 within the tolerance, and of some below."""
    own = torch.linspace(-0.02, 1, n)
    ran = check(
        [smooth(n, 24, dtype), smooth(n, 24, dtype)],
        functools.partial(pairops.sms_loss, own=own, reduction="none"),
        functools.partial(oracle.sms_loss, own=own),
    )
    assert set(ran) == {e for e in HERE if e in WIDE or dtype == torch.float32} - {"cpu", "cuda"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_temperature_is_read_exactly(dtype: torch.dtype) -> None:
    x, labels, t = smooth(20, 5), torch.arange(20) % 4, torch.tensor(0.07, dtype=dtype)
    # One by one: the mean of plain numbers alone is made in another way, in double.
    ours = pairops.supcon_loss(x, labels, temperature=t, reduction="none")
    plain = pairops.supcon_loss(x, labels, temperature=float(t), reduction="none")
    assert torch.equal(ours, plain)


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
