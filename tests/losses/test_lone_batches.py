"""A batch in which no row has a positive is warned of once, by losses that are 0 then."""

import inspect
import warnings
from typing import Any

import pytest
import torch

import pairops
from pairops.losses.objective import lone_batches
from support.named_cases import smooth
from support.on_cpu import device as device

WARNED = "no row of this batch has a positive"

# With each loss what it is called with besides embeddings and labels.
NEEDS_POSITIVES: list[tuple[str, dict[str, Any]]] = [
    ("ms_loss", {}),
    ("supcon_loss", {}),
    ("nt_xent_loss", {}),
    ("decoupled_softmax_loss", {}),
    ("nca_loss", {}),
    ("n_pair_loss", {}),
    ("circle_loss", {}),
    ("smooth_ap_loss", {}),
    ("fast_ap_loss", {}),
    ("soft_topk_loss", {}),
    *[("triplet_loss", {"mining": mining}) for mining in ("hard", "semihard", "all")],
    ("lifted_structure_loss", {"form": "original"}),
    ("margin_loss", {"triplets": True, "beta": 2.0}),
    ("proxy_nca_loss", {"proxies": torch.eye(5), "proxy_labels": torch.arange(20, 25)}),
]
PUSHES_APART: list[tuple[str, dict[str, Any]]] = [
    ("ms_loss", {"epsilon": None}),
    ("contrastive_loss", {}),
    ("binomial_deviance_loss", {}),
    ("mlcd_loss", {}),
    ("hashing_loss", {}),
    ("lifted_structure_loss", {}),
    ("margin_loss", {"beta": 2.0}),
    ("proxy_anchor_loss", {"proxies": torch.eye(5), "proxy_labels": torch.arange(20, 25)}),
]


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone_batches, "_watch", lone_batches._Watch())


def _value(name: str, further: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    x = smooth(len(labels), 5).requires_grad_()
    value: torch.Tensor = getattr(pairops, name)(x, labels, **further)
    return value


@pytest.mark.parametrize(("name", "further"), NEEDS_POSITIVES)
def test_a_loss_that_needs_positives_says_so_once(name: str, further: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert _value(name, further, torch.arange(8)) == 0
        _value(name, further, torch.arange(8))
    assert [WARNED in str(one.message) for one in said] == [True]
    assert said[0].filename == __file__
    lines, first = inspect.getsourcelines(_value)
    assert "getattr(pairops, name)" in lines[said[0].lineno - first]


@pytest.mark.parametrize(("name", "further"), NEEDS_POSITIVES)
def test_one_positive_is_enough(name: str, further: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _value(name, further, torch.tensor([0, 1, 2, 3, 4, 5, 20, 20]))
        _value(name, further, torch.arange(0))


@pytest.mark.parametrize(("name", "further"), PUSHES_APART)
def test_a_loss_that_trains_without_positives_is_silent(name: str, further: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = _value(name, further, torch.arange(8))
    assert value > 0


def test_python_s_filter_silences_it() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "no row of", UserWarning)
        _value("supcon_loss", {}, torch.arange(8))
    assert not said


def test_an_error_by_the_filter_comes_again() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match=WARNED):
                _value("supcon_loss", {}, torch.arange(8))


def test_a_module_shows_the_caller_s_line() -> None:
    loss = pairops.nn.SupConLoss()
    with pytest.warns(UserWarning, match=WARNED) as said:
        loss(smooth(6, 4), torch.arange(6))
    assert said[0].filename == __file__


def test_a_compiled_loss_says_nothing() -> None:
    torch._dynamo.reset()
    labels = torch.arange(8)
    compiled = torch.compile(
        lambda x: pairops.supcon_loss(x, labels), fullgraph=True, backend="aot_eager"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no row of")
        assert compiled(smooth(8, 5)) == 0


def test_a_gpu_is_asked_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with an answer that takes three calls to arrive."""
    asked = []

    class Event:
        def __init__(self) -> None:
            self.queries = 0

        def query(self) -> bool:
            self.queries += 1
            return self.queries > 2

    def ask(pairs: pairops.Pairs) -> Any:
        asked.append(bool(pairs.positives().any()))
        return torch.tensor(asked[-1]), Event()

    monkeypatch.setattr(lone_batches, "_asked", ask)
    x = smooth(6, 4)
    some, none = (pairops.Pairs.of(x, labels) for labels in (torch.arange(6) // 2, torch.arange(6)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            lone_batches._without_waiting(some)
        assert 3 < len(asked) < 10
        assert all(asked)
        while asked[-1]:
            lone_batches._without_waiting(none)
        lone_batches._without_waiting(some)
        lone_batches._without_waiting(some)
    with pytest.warns(UserWarning, match="no row of an earlier batch has a positive"):
        lone_batches._without_waiting(some)
