"""Bad input to a loss: an error that names the argument, what it was, and what it must be."""

import math
from typing import Any

import pytest
import torch

import pairops
from pairops import losses
from support.loss_parameters import SIMILAR_ONLY, call, parameters
from support.named_cases import smooth

X, Y, LABELS = smooth(6, 5), smooth(6, 5), torch.arange(6) // 2
TABLE, CLASSES = torch.rand(3, 4), torch.tensor([0, 1, 2, 0, 1, 2])
SMS = {"relevance": TABLE, "x_classes": CLASSES, "y_classes": CLASSES}


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("ms_loss", "alpha"), ("ms_loss", "beta"), ("binomial_deviance_loss", "alpha"),
        ("binomial_deviance_loss", "beta"), ("circle_loss", "gamma"), ("mlcd_loss", "scale"),
        ("supcon_loss", "temperature"), ("nt_xent_loss", "temperature"), ("nca_loss", "scale"),
        ("decoupled_softmax_loss", "temperature"), ("proxy_anchor_loss", "alpha"),
        ("proxy_nca_loss", "scale"), ("info_nce_loss", "temperature"), ("tal_loss", "temperature"),
        ("decoupled_contrastive_loss", "temperature"), ("decoupled_contrastive_loss", "sigma"),
        ("multi_positive_loss", "temperature"), ("hydra_loss", "temperature"),
        ("smooth_ap_loss", "temperature"),
        ("soft_topk_loss", "temperature"), ("soft_topk_loss", "alpha"),
    ],
)  # fmt: skip
def test_what_must_be_above_0(name: str, argument: str) -> None:
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"{argument} is {bad}; it must be .* above 0"):
            call(name, X, **{argument: bad})
    with pytest.raises(TypeError, match=f"{argument} is str; it must be a number"):
        call(name, X, **{argument: "0.1"})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("contrastive_loss", "pos_margin"), ("contrastive_loss", "neg_margin"),
        ("margin_loss", "margin"), ("margin_loss", "beta"), ("triplet_loss", "margin"),
        ("lifted_structure_loss", "pos_margin"), ("lifted_structure_loss", "neg_margin"),
        ("circle_loss", "margin"), ("proxy_anchor_loss", "margin"), ("tal_loss", "margin"),
        ("sms_loss", "gamma"), ("sms_loss", "tau"), ("sms_loss", "tolerance"),
        ("ms_loss", "base"),
        ("binomial_deviance_loss", "base"), ("hashing_loss", "scale"),
    ],
)  # fmt: skip
def test_what_must_be_finite(name: str, argument: str) -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{argument} is {bad}; it must be a finite number"):
            call(name, X, **{argument: bad})
    with pytest.raises(
        ValueError, match=rf"{argument} is a torch.float32 tensor of shape \(2, 3\)"
    ):
        call(name, X, **{argument: torch.rand(2, 3)})


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_checks_what_all_have(name: str) -> None:
    given = parameters(name)[0] and {}
    n = 6
    with pytest.raises(ValueError, match="reduction is 'average'; it must be one of mean"):
        call(name, X, reduction="average", **given)
    with pytest.raises(ValueError, match=rf"weight has shape \(2,\); it must be \({n},\)"):
        call(name, X, weight=torch.ones(2), **given)
    with pytest.raises(ValueError, match=r"weight has the value -1\.0; none may be below 0"):
        call(name, X, weight=torch.tensor([1.0, -1.0, 0, 0, 0, 0]), **given)
    with pytest.raises(TypeError, match=r"weight is torch\.int64; it must be a floating-point"):
        call(name, X, weight=torch.ones(n, dtype=torch.int64), **given)
    with pytest.raises(ValueError, match="distance is 'euclidean'; it must be one of cosine, dot"):
        call(name, X, distance="euclidean", **given)
    with pytest.raises(TypeError, match=rf"{name}\(\) has no keyword 'marginn'"):
        call(name, X, marginn=1.0, **given)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"distance": "cosine", "normalize": False}, "normalize is False and distance is 'cosine'"),
        ({"distance": "dot", "normalize": True}, "normalize is True and distance is 'dot'"),
    ],
)
def test_contradictions_about_norms(given: dict[str, Any], error: str) -> None:
    for name in ("supcon_loss", "info_nce_loss", "n_pair_loss"):
        with pytest.raises(ValueError, match=error):
            call(name, X, **given)
    with pytest.raises(TypeError, match="normalize is int; it must be a bool or None"):
        call("supcon_loss", X, normalize=1)


def test_a_variance_needs_two_features() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(6, 1\) and distance is 'snr'; D must be"):
        pairops.contrastive_loss(X[:, :1], LABELS, distance="snr")


@pytest.mark.parametrize("name", SIMILAR_ONLY)
def test_what_compares_similarities_alone(name: str) -> None:
    with pytest.raises(ValueError, match=f"distance is 'l2'; {name} compares similarities"):
        call(name, X, distance="l2")
    with pytest.raises(ValueError, match=r"distance is .snr.; contrastive_loss with"):
        pairops.contrastive_loss(X, LABELS, negatives="raw", distance="snr")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("triplet_loss", "mining"),
        ("lifted_structure_loss", "form"),
        ("contrastive_loss", "negatives"),
    ],
)
def test_names_that_are_unknown(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 'other'; it must be "):
        call(name, X, **{argument: "other"})


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"relevance": torch.rand(3)}, r"relevance is \(3,\); it must be a tensor \(A, B\)"),
        ({"relevance": [[1.0]]}, "relevance is list; it must be a real tensor; write"),
        ({"relevance": torch.ones(3, 4).long()}, "relevance is torch.int64; it must be floating"),
        ({"relevance": TABLE.log().mul(0).div(0)}, "relevance holds a NaN"),
        ({"x_classes": None}, "x_classes is None; with relevance it must be an integer tensor"),
        (
            {"y_classes": CLASSES.float()},
            "y_classes is torch.float32; it must be an integer",
        ),
        ({"y_classes": CLASSES[:2]}, r"y_classes has shape \(2,\); it must be \(6,\)"),
        (
            {"x_classes": CLASSES + 1},
            "x_classes go from 1 to 3 and relevance has on that side 3",
        ),
        (
            {"y_classes": CLASSES - 1},
            "y_classes go from -1 to 1 and relevance has on that side 4",
        ),
    ],
)
def test_a_bad_table_of_classes(changed: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        pairops.sms_loss(X, Y, **{**SMS, **changed})


@pytest.mark.parametrize(
    ("own", "further", "error"),
    [
        (torch.ones(6), SMS, "own is given with relevance, which has it; it must be None"),
        (torch.ones(5), {}, r"own has shape \(5,\); it must be \(6,\)"),
        (CLASSES, {}, r"own is torch\.int64; it must be floating-point, from 0 to 1"),
        ([1.0], {}, "own is list; it must be a real tensor"),
        (torch.full((6,), torch.nan), {}, "own has the value nan; it must be finite"),
    ],
)
def test_a_bad_relevance_of_pairs(own: Any, further: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        pairops.sms_loss(X, Y, own=own, **further)


def test_a_bad_margin_of_angles() -> None:
    for bad in (-0.1, 28.6, math.pi):
        with pytest.raises(ValueError, match=rf"margin is {bad}; it must be from 0 to below pi"):
            pairops.arcface_loss(X, LABELS, smooth(3, 5), margin=bad)


def test_bad_proxies() -> None:
    for loss in (pairops.arcface_loss, pairops.proxy_anchor_loss, pairops.proxy_nca_loss):
        with pytest.raises(ValueError, match="proxies has D 4; it must be 5 as in x"):
            loss(X, LABELS, smooth(3, 4))
        with pytest.raises(ValueError, match="labels go from 0 to 2 and without proxy_labels"):
            loss(X, LABELS, smooth(2, 5))
        with pytest.raises(TypeError, match=r"proxies is list; it must be a tensor \(N, D\)"):
            loss(X, LABELS, [1.0])
        with pytest.raises(ValueError, match=r"proxy_labels has shape \(2,\); it must be \(3,\)"):
            loss(X, LABELS, smooth(3, 5), proxy_labels=torch.arange(2))
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"smoothing is {bad}; it must be at least 0"):
            pairops.proxy_nca_loss(X, LABELS, smooth(3, 5), smoothing=bad)


def test_classes_of_beta() -> None:
    with pytest.raises(ValueError, match="labels go from 0 to 2 and beta has 2 classes"):
        pairops.margin_loss(X, LABELS, beta=torch.ones(2))
    with pytest.raises(TypeError, match=r"beta is torch\.int64; it must be floating-point"):
        pairops.margin_loss(X, LABELS, beta=torch.ones(3, dtype=torch.int64))
    beta = torch.full((3,), 1.2, requires_grad=True)
    labels = torch.where(LABELS == 1, -100, LABELS)  # an ignored label is no class
    pairops.margin_loss(X, labels, beta=beta).backward()
    assert beta.grad is not None
    assert beta.grad[1] == 0


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("multi_positive_loss", (Y,), r"positives is \(6, 5\); it must be a tensor \(N, P, D\)"),
        ("multi_positive_loss", (torch.rand(6, 0, 5),), r"positives is \(6, 0, 5\)"),
        ("multi_positive_loss", (torch.rand(4, 2, 5),), "positives has 4 rows; it must have 6"),
        ("multi_positive_loss", (torch.rand(6, 2, 4),), "has D 4; it must be 5 as in x"),
        ("info_nce_loss", (Y[:5],), "y has 5 rows; it must have at least 6"),
        ("decoupled_contrastive_loss", (smooth(7, 5),), "y has 7 rows; it must have 6"),
        ("tal_loss", (smooth(7, 5), LABELS), "y has 7 rows; it must have 6"),
        ("sms_loss", (smooth(7, 5),), "y has 7 rows; it must have 6"),
    ],
)
def test_sets_that_do_not_match(name: str, args: tuple[Any, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        getattr(pairops, name)(X, *args)


def test_a_table_needs_classes_of_both() -> None:
    pairs = pairops.Pairs.paired(X, Y)
    weird = pairops.Function(lambda s, c: s * c, name="times_class")
    short = pairops.table(TABLE, CLASSES[:2], CLASSES)
    with pytest.raises(ValueError, match=r"int64 \(6,\)"):
        pairops.row_stats(pairs, pairops.total(pairops.ALL, short, function=weird))
    with pytest.raises(ValueError, match=r"floating-point \(A, B\)"):
        pairops.table(TABLE[0], CLASSES, CLASSES)
    with pytest.raises(ValueError, match="owners go from 1 to 3 and values have on that side 3"):
        pairops.table(TABLE, CLASSES + 1, CLASSES)
    good = pairops.table(TABLE, CLASSES, CLASSES)
    for engine in ("cpu", "cuda", "triton", "chunked"):
        with pairops.engine(engine), pytest.raises(ValueError, match="cannot serve this call"):
            pairops.row_stats(pairs, pairops.total(pairops.ALL, good, function=weird))
