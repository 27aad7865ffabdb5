"""Losses over numbers against their oracle, of one set on every engine, and what else they say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.engine_names import HERE
from support.loss_comparison import check
from support.named_cases import smooth

DOUBLE = torch.float64
NAN, INF = float("nan"), float("inf")


def said(values: Tensor) -> Tensor:
    """Predictions: none is at a distance of one half, or of 1, from another."""
    return values.float() + 0.37 * (torch.arange(len(values)) * 5 % 7)


# Values, and the width. Of quarters many differ by exactly 1.
CASES: dict[str, tuple[Tensor, float]] = {
    "quarters": (torch.arange(40) * 7 % 19 / 4, 1.0),
    "equal ones": (torch.arange(40) * 7 % 9, 0.0),
    "all alone": (3.0 * torch.arange(30).flip(0), 1.0),
    "some alone": (torch.cat([torch.full((20,), 1.5), 4.0 * torch.arange(9)]), 1.0),
    "all near": (torch.linspace(0, 1, 20), 1.0),
    "one row": (torch.ones(1), 1.0),
    "no rows": (torch.ones(0), 1.0),
}


def call(loss: Callable[..., Tensor], name: str, x: Tensor, values: Tensor, **given: Any) -> Tensor:
    rest = (said(values),) if name == "conr_loss" else ()
    return loss(x, values, *rest, **given)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["conr_loss", "supremix_loss"])
def test_one_set_on_every_engine(name: str, case: str) -> None:
    values, width = CASES[case]

    def ours(x: Tensor) -> Tensor:
        given = {"width": width, "reduction": "none"}
        return call(getattr(pairops, name), name, x, values, **given)

    def formula(x: Tensor, **given: Any) -> Tensor:
        return call(getattr(oracle, name), name, x, values, width=width, **given)

    ran = check([smooth(len(values), 9)], ours, formula)
    assert set(ran) >= {"blockwise", "dense", "triton", "chunked"} & set(HERE)


def test_the_cases_have_what_they_are_about() -> None:
    def zeros(case: str, name: str) -> Tensor:
        values, width = CASES[case]
        x = smooth(len(values), 9, DOUBLE)
        return call(getattr(oracle, name), name, x, values, width=width) == 0

    for name in ("conr_loss", "supremix_loss"):
        assert not zeros("quarters", name).all()
        assert zeros("all alone", name).all()
        assert zeros("some alone", name).any()
        assert not zeros("some alone", name).all()
    assert zeros("all near", "conr_loss").all(), "nothing is a negative"


@pytest.mark.parametrize("constant", [True, False])
def test_a_weight_multiplies_pushes_too(constant: bool) -> None:
    values, width = CASES["quarters"]
    x, weight = smooth(40, 9, DOUBLE), torch.rand(40, dtype=DOUBLE)
    weight[::6] = 0
    x.requires_grad_()
    given: dict[str, Any] = {"width": width, "constant": constant, "weight": weight}
    for reduction in ("mean", "none"):
        ours = pairops.conr_loss(x, values, said(values), **given, reduction=reduction)
        theirs = oracle.conr_loss(x, values, said(values), **given)
        expected = oracle.reduce(theirs, weight=weight, reduction=reduction)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        found, wanted = (torch.autograd.grad(z.sum(), x)[0] for z in (ours, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
@pytest.mark.parametrize("case", ["quarters", "some alone"])
def test_what_is_learned_has_the_gradients_of_differences(case: str, engine: str) -> None:
    """By embeddings, temperature, the slope of a push and the weights, and once more by all."""
    values, width = CASES[case]
    few = values[:8] if case == "quarters" else values[17:25]
    guess = few.double() + 0.3 * (torch.arange(8) % 4)

    def conr(x: Tensor, temperature: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        given = {"width": width, "temperature": temperature, "eta": eta, "weight": weight}
        return pairops.conr_loss(x, few, guess if case == "quarters" else 0 * guess, **given)

    def supremix(x: Tensor, temperature: Tensor) -> Tensor:
        return pairops.supremix_loss(x, few, width=width, temperature=temperature)

    numbers = [torch.tensor(z, dtype=DOUBLE) for z in (0.4, 0.3)]
    weight = 0.5 + torch.rand(8, dtype=DOUBLE)
    leaves = [z.requires_grad_() for z in (smooth(8, 3, DOUBLE), *numbers, weight)]
    with pairops.engine(engine):
        for loss, given in ((conr, leaves), (supremix, leaves[:2])):
            assert bool(loss(*given) > 0)
            torch.autograd.gradcheck(loss, given)
            torch.autograd.gradgradcheck(loss, given)


def test_a_weight_of_0_has_the_slope_of_its_factor() -> None:
    values, width = CASES["quarters"]
    x = smooth(40, 9, DOUBLE)
    weight = torch.zeros(40, dtype=DOUBLE, requires_grad=True)
    given: dict[str, Any] = {"width": width, "reduction": "sum"}
    value = pairops.conr_loss(x, values, said(values), weight=weight, **given)
    (slope,) = torch.autograd.grad(value, weight)
    near = weight.detach() + 1e-9
    moved = pairops.conr_loss(x, values, said(values), weight=near, reduction="none", width=width)
    torch.testing.assert_close(slope, moved / 1e-9, rtol=1e-6, atol=1e-9)


def test_a_bad_number_shows() -> None:
    values, width = CASES["quarters"]
    x = smooth(40, 9)
    bad = values.clone()
    bad[3] = NAN
    assert pairops.supremix_loss(x, bad, width=width).isnan()
    assert pairops.conr_loss(x, bad, said(values), width=width).isnan()
    guess = said(values)
    guess[3] = NAN
    assert pairops.conr_loss(x, values, guess, width=width).isnan()


def test_names_and_self_pairs() -> None:
    values, width = CASES["quarters"]
    x, ids = smooth(40, 9, DOUBLE), torch.randperm(40)
    for name in ("conr_loss", "supremix_loss"):
        alone = call(getattr(pairops, name), name, x, values, width=width)
        other: dict[str, Any] = {"ref_emb": x.flip(0), "ref_values": values.flip(0)}
        if name == "conr_loss":
            other["ref_predictions"] = said(values).flip(0)
        other |= {"ids": ids, "ref_ids": ids.flip(0), "width": width}
        by_ids = call(getattr(pairops, name), name, x, values, **other)
        torch.testing.assert_close(by_ids, alone)


def test_farther_negatives_are_pushed_more() -> None:
    """Two negatives at the same similarity: the one with the farther number weighs more."""
    x = torch.eye(4, dtype=DOUBLE)
    values, width = torch.tensor([0.0, 0.5, 3.0, 9.0]), 1.0
    same = torch.zeros(4)
    for weights in (
        pairops.pair_weights(pairops.conr_loss, x, values, same, width=width, eta=0.5),
        pairops.pair_weights(pairops.supremix_loss, x, values, width=width),
    ):
        assert weights[0, 3] > weights[0, 2] > 0 > weights[0, 1]
    apart = torch.tensor([0.0, 0.0, 0.0, 5.0])
    weights = pairops.pair_weights(pairops.conr_loss, x, values, apart, width=width)
    assert weights[0, 2] > 0
    assert weights[0, 3] == 0, "a prediction that is far is no negative"


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"width": -0.1}, "width is -0.1; it must be a finite number, 0 or above"),
        ({"width": torch.tensor(1.0)}, "width is Tensor; it must be a number"),
        ({"values": torch.zeros(5)}, r"values has shape \(5,\); it must be \(6,\)"),
        ({"predictions": torch.zeros(6, 1)}, r"predictions has shape \(6, 1\); it must be \(6,\)"),
        ({"predictions": [1.0] * 6}, "predictions is list; it must be a real tensor"),
        ({"ref_emb": torch.ones(4, 3)}, "ref_values is None; it must be given with ref_emb"),
        ({"ref_values": torch.ones(4)}, "ref_values is given without ref_emb"),
        ({"ref_predictions": torch.ones(4)}, "ref_predictions is given without ref_emb"),
        (
            {"ref_emb": torch.ones(4, 3), "ref_values": torch.ones(4)},
            "ref_predictions is None; it must be given with ref_emb",
        ),
        ({"temperature": 0.0}, "temperature is 0.0; it must be .* above 0"),
        ({"eta": INF}, "eta is inf; it must be a finite number"),
        ({"constant": 1}, "constant is int; it must be a bool"),
        ({"labels": torch.zeros(6)}, "has no keyword 'labels'"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], says: str) -> None:
    given = {"values": torch.zeros(6), "predictions": torch.zeros(6), **keywords}
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.conr_loss(torch.ones(6, 3), **given)
