"""What bad input gets: an error that names the argument, what it was and what it must be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import pairops
from pairops import NEG, POS, Pairs, lse, partner, row_stats, total
from pairops.ops import engines
from pairops.ops.terms import functions

LEARNED = torch.ones((), requires_grad=True)
X = torch.randn(6, 4)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])

LABELLED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "x is a list": (([[1.0]], LABELS), {}, TypeError, r"x is list; .* tensor"),
    "x is an integer": ((X.long(), LABELS), {}, TypeError, r"x is torch.int64; it must be float16"),
    "x is complex": (
        (X.to(torch.complex64), LABELS),
        {},
        TypeError,
        r"x is torch.complex64; it must",
    ),
    "x has one axis": ((X[0], LABELS), {}, ValueError, r"x has shape \(4,\); it must be \(N, D\)"),
    "x has four axes": (
        (X[None, None], LABELS),
        {},
        ValueError,
        r"x has shape \(1, 1, 6, 4\); it must",
    ),
    "D is 0": ((X[:, :0], LABELS), {}, ValueError, r"x has shape \(6, 0\); D must be at least 1"),
    "labels is a list": (
        (X, [0] * 6),
        {},
        TypeError,
        r"labels is list; it must be an integer tensor",
    ),
    "labels are float": (
        (X, LABELS.float()),
        {},
        TypeError,
        r"labels is torch.float32; it must be",
    ),
    "labels require grad": (
        (X, LABELS.float().requires_grad_()),
        {},
        TypeError,
        r"labels is torch.float32; it must be an integer tensor \(and without requires_grad\)",
    ),
    "labels without memory": (
        (X, TwoTensor(LABELS, LABELS.clone())),
        {},
        TypeError,
        r"labels is TwoTensor, which has no memory of its own; it must be a plain tensor, as x is",
    ),
    "labels are too few": (
        (X, LABELS[:5]),
        {},
        ValueError,
        r"labels has shape \(5,\); it must be \(6,\)",
    ),
    "labels have two axes": (
        (X, LABELS[:, None]),
        {},
        ValueError,
        r"labels has shape \(6, 1\); it must be \(6,\)",
    ),
    "ref_emb without ref_labels": (
        (X, LABELS),
        {"ref_emb": X},
        ValueError,
        r"ref_labels is None; it must be given with ref_emb",
    ),
    "ref_labels without ref_emb": (
        (X, LABELS),
        {"ref_labels": LABELS},
        ValueError,
        r"ref_labels is given without ref_emb",
    ),
    "ids without references": (
        (X, LABELS),
        {"ids": LABELS},
        ValueError,
        r"ids is given without ref_emb",
    ),
    "ids without ref_ids": (
        (X, LABELS),
        {"ref_emb": X, "ref_labels": LABELS, "ids": LABELS},
        ValueError,
        r"ref_ids is None; it must be given with ids",
    ),
    "ids are float": (
        (X, LABELS),
        {"ref_emb": X, "ref_labels": LABELS, "ids": LABELS.float(), "ref_ids": LABELS},
        TypeError,
        r"ids is torch.float32; it must be an integer tensor",
    ),
    "ref_emb of another D": (
        (X, LABELS),
        {"ref_emb": X[:, :3], "ref_labels": LABELS},
        ValueError,
        r"ref_emb has D 3; it must be 4 as in x",
    ),
    "ref_emb of another dtype": (
        (X, LABELS),
        {"ref_emb": X.double(), "ref_labels": LABELS},
        TypeError,
        r"ref_emb has dtype torch.float64; it must be torch.float32 as in x",
    ),
    "ref_emb on another device": (
        (X, LABELS),
        {"ref_emb": X.to("meta"), "ref_labels": LABELS},
        ValueError,
        r"ref_emb is on meta, where there are no values; it must be on a device",
    ),
    "ref_labels are too many": (
        (X, LABELS),
        {"ref_emb": X[:2], "ref_labels": LABELS},
        ValueError,
        r"ref_labels has shape \(6,\); it must be \(2,\), one for each row of ref_emb",
    ),
    "exclude_self without room": (
        (X, LABELS),
        {"ref_emb": X[:2], "ref_labels": LABELS[:2], "exclude_self": True},
        ValueError,
        r"exclude_self=True says .* ref_emb has 2 rows and x has 6",
    ),
    "exclude_self is a number": (
        (X, LABELS),
        {"exclude_self": 1},
        ValueError,
        r"exclude_self is 1; it must be True, False or \"auto\"",
    ),
    "exclude_self beside ids": (
        (X, LABELS),
        {
            "ref_emb": X,
            "ref_labels": LABELS,
            "ids": LABELS,
            "ref_ids": LABELS,
            "exclude_self": True,
        },
        ValueError,
        r"exclude_self is True, .* but ids are given; it must be",
    ),
    "ignore_index is too large": (
        (X, LABELS),
        {"ignore_index": 2**70},
        ValueError,
        r"ignore_index is 1180591620717411303424; it must be at most 18446744073709551615",
    ),
    "exclude_self is a word": (
        (X, LABELS),
        {"exclude_self": "never"},
        ValueError,
        r"exclude_self is 'never'; it must be True, False or \"auto\"",
    ),
    "ignore_index is a float": (
        (X, LABELS),
        {"ignore_index": -100.0},
        TypeError,
        r"ignore_index is float; it must be an int or None",
    ),
    "normalize is a word": (
        (X, LABELS),
        {"normalize": "l2"},
        TypeError,
        r"normalize is str; it must be a bool",
    ),
    "unknown reduction": (
        (X, LABELS),
        {"reduction": "average"},
        ValueError,
        r"reduction is 'average'; it must be one of mean, mean_nonzero, sum, none",
    ),
    "weight is a number": (
        (X, LABELS),
        {"weight": 2.0},
        TypeError,
        r"weight is float; it must be a",
    ),
    "weight is an integer": (
        (X, LABELS),
        {"weight": LABELS},
        TypeError,
        r"weight is torch.int64; it",
    ),
    "weight is too short": (
        (X, LABELS),
        {"weight": X[:5, 0]},
        ValueError,
        r"weight has shape \(5,\); it must be \(6,\)",
    ),
    "unknown keyword": ((X, LABELS), {"margins": 1}, TypeError, r"margins"),
}


@pytest.mark.parametrize("case", LABELLED)
@pytest.mark.parametrize("loss", ["ms_loss", "contrastive_loss", "supcon_loss", "triplet_loss"])
def test_labelled_losses(loss: str, case: str) -> None:
    args, keywords, kind, message = LABELLED[case]
    with pytest.raises(kind, match=message):
        getattr(pairops, loss)(*args, **keywords)


def two_sets(**changed: Any) -> Callable[[], object]:
    arguments = {"x": X, "y": X.flip(0), "temperature": 0.1, **changed}
    return lambda: pairops.info_nce_loss(arguments.pop("x"), arguments.pop("y"), **arguments)


CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "y of another length": (
        two_sets(y=X[:3]),
        ValueError,
        r"y has 3 rows; it must have at least 6",
    ),
    "y of another D": (two_sets(y=X[:, :2]), ValueError, r"y has D 2; it must be 4 as in x"),
    "y of another dtype": (
        two_sets(y=X.half()),
        TypeError,
        r"y has dtype torch.float16; it must be",
    ),
    "y is labels": (two_sets(y=LABELS), TypeError, r"y is torch.int64; it must be float16"),
    "temperature 0": (
        two_sets(temperature=0),
        ValueError,
        r"temperature is 0; it must be a finite",
    ),
    "temperature < 0": (two_sets(temperature=-0.1), ValueError, r"temperature is -0.1; .* above 0"),
    "temperature NaN": (two_sets(temperature=float("nan")), ValueError, r"temperature is nan; it"),
    "temperature is text": (
        two_sets(temperature="1"),
        TypeError,
        r"temperature is str; it must be",
    ),
    "temperature of rows": (
        two_sets(temperature=X[:, 0]),
        ValueError,
        r"temperature is a torch.float32 tensor of shape \(6,\); it must be a number, or a ",
    ),
    "supcon's temperature": (
        lambda: pairops.supcon_loss(X, LABELS, temperature=-1),
        ValueError,
        r"temperature is -1; it must be a finite number above 0",
    ),
    "alpha": (
        lambda: pairops.ms_loss(X, LABELS, alpha=0),
        ValueError,
        r"alpha is 0; it must be a finite number above 0",
    ),
    "beta": (
        lambda: pairops.ms_loss(X, LABELS, beta=float("inf")),
        ValueError,
        r"beta is inf; it must be a finite number above 0",
    ),
    "epsilon": (
        lambda: pairops.ms_loss(X, LABELS, epsilon="0.1"),  # type: ignore[arg-type]
        TypeError,
        r"epsilon is str; it must be a number or a tensor with one",
    ),
    "an unknown engine": (
        lambda: pairops.engine("fast").__enter__(),
        ValueError,
        r"name is 'fast'; it must be one of auto, cpu, cuda, triton, chunked, blockwise, ",
    ),
    "no terms": (lambda: row_stats(Pairs.of(X, LABELS)), ValueError, r"row_stats got no terms"),
    "an unknown side": (
        lambda: lse("positives", 1.0, 0.0),
        ValueError,
        r"side is 'positives'; it must",
    ),
    "too few arguments": (
        lambda: lse(POS, 1.0),
        ValueError,
        r"affine takes 2 arguments .* gives 1",
    ),
    "a window that is a word": (
        lambda: lse(NEG, 1.0, 0.0, above="far"),  # type: ignore[arg-type]
        TypeError,
        r"above is str; it must be a number, a tensor \(N,\) or with one element",
    ),
    "a function by its name": (
        lambda: total(NEG, function="affine"),  # type: ignore[arg-type]
        TypeError,
        r"function is str; it must be a pairops.Function",
    ),
    "an argument that is text": (
        lambda: row_stats(Pairs.of(X, LABELS), total(NEG, "1", 0.0)),  # type: ignore[arg-type]
        TypeError,
        r"argument 0 of affine is str; it must be a number, a tensor \(N,\) or",
    ),
    "a complex argument": (
        lambda: row_stats(Pairs.of(X, LABELS), total(NEG, X[:, 0] * 1j, 0.0)),
        TypeError,
        r"argument 0 of affine is torch.complex64; it must be a real tensor",
    ),
    "partner of a number": (
        lambda: row_stats(Pairs.of(X, LABELS), total(NEG, partner(3.0), 0.0)),  # type: ignore[arg-type]
        TypeError,
        r"values is float; it must be a real tensor",
    ),
    "an unknown statistic": (
        lambda: pairops.Term("mean", POS, functions.identity),
        ValueError,
        r"statistic is 'mean'; it must be one of highest, lowest, lse, sum",
    ),
    "a sum without gradient": (
        lambda: pairops.Term("sum", POS, functions.identity, grad=False),
        ValueError,
        r"grad is False for a sum",
    ),
    "a builtin as a function": (
        lambda: pairops.Function(torch.exp),
        TypeError,
        r"value is .*exp.*; it must be a Python function, such as lambda s",
    ),
    "an argument of rows": (
        lambda: row_stats(Pairs.of(X, LABELS), total(NEG, X[:3, 0], 0.0)),
        ValueError,
        r"argument 0 of affine has shape \(3,\); it must be \(6,\) or have one element",
    ),
    "an argument of partners": (
        lambda: row_stats(
            Pairs.of(X, LABELS, ref_emb=X[:2], ref_labels=LABELS[:2]),
            total(NEG, 1.0, partner(X[:, 0])),
        ),
        ValueError,
        r"argument 1 of affine has shape \(6,\); it must be \(2,\) or have one element",
    ),
    "a window": (
        lambda: row_stats(Pairs.of(X, LABELS), lse(NEG, 1.0, 0.0, above=X)),
        ValueError,
        r"above has shape \(6, 4\); it must be \(6,\) or have one element",
    ),
    "a function that learns on the side": (
        lambda: pairops.Function(lambda s: LEARNED * s, name="learns"),
        TypeError,
        r"value uses the tensor LEARNED, which requires grad and would get none",
    ),
    "a function of unknown arity": (
        lambda: pairops.Function(lambda *s: s[0], name="open"),
        TypeError,
        r"value must take \(s, \*arguments\) one by one",
    ),
    "a function without derivative": (
        lambda: pairops.Function(lambda s: s.item(), name="reads"),
        ValueError,
        r"slopes of <lambda> cannot be derived .*pass slopes=",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_other_calls(case: str) -> None:
    call, kind, message = CALLS[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_named_engine_that_cannot_serve_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky:
        NAME = "picky"

        @staticmethod
        def declines(*_call: object) -> str:
            return "it has a headache"

    order = {"picky": Picky, **engines.ENGINES}
    monkeypatch.setattr(engines, "ENGINES", order)
    truth = pairops.ms_loss(X, LABELS)  # "auto" moves on
    assert torch.isfinite(truth)
    with (
        pairops.engine("picky"),
        pytest.raises(ValueError, match="engine 'picky' cannot serve this call: it has a headache"),
    ):
        pairops.ms_loss(X, LABELS)


def test_an_unknown_engine_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_default", "quick")
    with pytest.raises(ValueError, match="PAIROPS_ENGINE is 'quick'; it must be one of auto"):
        pairops.ms_loss(X, LABELS)


def test_labels_of_every_integer_type_are_compared_exactly() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
        labels = (LABELS % 2).to(dtype)
        torch.testing.assert_close(pairops.ms_loss(X, labels), pairops.ms_loss(X, LABELS % 2))
    near = torch.tensor([2**62, 2**62, 2**62 + 1, 2**62 + 1, -1, -1])
    torch.testing.assert_close(pairops.ms_loss(X, near), pairops.ms_loss(X, LABELS))


def test_nothing_is_computed_before_the_reduction_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_call: object) -> None:
        raise AssertionError("an engine ran")

    monkeypatch.setattr(engines.ENGINES["blockwise"], "forward", never)
    for loss in ("ms_loss", "contrastive_loss", "supcon_loss", "triplet_loss"):
        with pytest.raises(ValueError, match="reduction is 'avg'"):
            getattr(pairops, loss)(X, LABELS, reduction="avg")
        with pytest.raises(ValueError, match="weight has shape"):
            getattr(pairops, loss)(X, LABELS, weight=X)
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        pairops.info_nce_loss(X, X, reduction="avg")  # type: ignore[arg-type]
