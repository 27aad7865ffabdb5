"""Wrong values at every argument of every public function: a ValueError or TypeError that names it.

What is accepted all the same stands in `support.wrong_arguments.ACCEPTED`, with its reason.
"""

import inspect
import re
from typing import Any

import pytest
import torch

import pairops
from pairops import losses, retrieval
from support.exhaustive import exhaustive_but
from support.wrong_arguments import CALLS, accepted, call, names_of
from support.wrong_values import VALUES

QUICK = (
    "ms_loss", "info_nce_loss", "sms_loss", "row_stats", "Function", "CrossBatchMemory", "evaluate",
)  # fmt: skip
EVERY = [(function, name) for function in CALLS for name in names_of(function)]


def test_every_public_function_is_here() -> None:
    public = [name for name in pairops.__all__ if callable(getattr(pairops, name))]
    results = {"Aux", "Pairs", "PositiveRows"}  # what is returned; their static methods are here
    assert set(public) - results <= set(CALLS)
    assert set(retrieval.__all__) - {"Retrieval"} <= set(CALLS)
    assert set(losses.LOSSES) <= set(CALLS)
    assert len(VALUES) >= 25


@pytest.mark.parametrize("function", list(CALLS))
def test_the_right_call_is_right(function: str) -> None:
    call(function)


@pytest.mark.parametrize(
    ("function", "name"), exhaustive_but(EVERY, lambda function, _: function in QUICK)
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is copied at every call:UserWarning")
def test_a_wrong_value_is_refused_by_name(function: str, name: str) -> None:
    wrong = [fault for value in VALUES if (fault := _fault(function, name, value))]
    assert not wrong, "\n".join([f"{function}({name}=...)", *wrong])


def _fault(function: str, name: str, value: str) -> str:
    """What is wrong with what a call did with this value; nothing if it was right."""
    try:
        call(function, **{name: VALUES[value]()})
    except (ValueError, TypeError) as error:
        if accepted(function, name, value):
            return ""
        said = any(re.search(rf"\b{word}\b", str(error)) for word in (name, *ALIASES.get(name, ())))
        return "" if said else f"{value}: {type(error).__name__} without the name: {error}"
    except Exception as error:
        return f"{value}: {type(error).__name__}: {str(error).splitlines()[0]}"
    return "" if accepted(function, name, value) else f"{value}: accepted"


# Words by which a message may name an argument instead: the other of two that must agree.
ALIASES: dict[str, tuple[str, ...]] = {
    "args": ("argument", "arguments"),
    "values": ("argument",),
    "proxies": ("weight",),
    "rows": ("term",),
    "x": ("ref_emb", "y", "positives", "proxies", "labels", "proxy_labels", "weight"),
    "embedding_size": ("D",),
    "name": ("engine",),
}


def test_it_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(x: Any, *, power: float = 2.0) -> Any:
        return x**power

    monkeypatch.setitem(CALLS, "careless", (careless, lambda: {"x": torch.ones(2)}))
    assert list(inspect.signature(careless).parameters) == names_of("careless")
    assert _fault("careless", "power", "an object").startswith("an object: TypeError without")
    assert _fault("careless", "power", "−1") == "−1: accepted"
