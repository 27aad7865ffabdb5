"""The site's own code: every loss has a formula, and all that it must be given for its picture."""

import importlib
import inspect
import re
from typing import Any

import pytest

from pairops import losses
from support.project import ROOT


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    return importlib.import_module


@pytest.mark.parametrize("name", losses.__all__)
def test_a_loss_has_a_formula(site: Any, name: str) -> None:
    formula = site("formula")
    sentence = " ".join((inspect.getdoc(losses.LOSSES[name]) or "").partition("\n\n")[0].split())
    written, remark = formula.split(sentence)
    found = formula.latex(written)
    assert found.startswith(r"\ell _{")
    assert found.count("{") == found.count("}")
    assert found.isascii(), f"{name}: {found} has a sign that formula.py does not know"
    assert not re.search(r"[.,:]$", written)
    assert not remark or remark[0].isalpha() or remark[0] in "0`"


def test_what_formulas_become(site: Any) -> None:
    formula = site("formula")
    assert formula.latex("ℓ_i = 1/|P_i| Σ_p s_ip/τ") == (
        r"\ell _{i} = \frac{1}{|P_{i}|} \sum _{p} s_{ip}/\tau "
    )
    assert formula.latex("[pos_margin − s_ip]₊") == r"[\text{ pos_margin }- s_{ip}]_{+}"
    assert formula.split("ℓ_i = a: b is c.") == ("ℓ_i = a", "b is c.")


@pytest.mark.parametrize("name", losses.__all__)
def test_the_batch_has_what_a_loss_must_be_given(site: Any, name: str) -> None:
    value = losses.LOSSES[name](**site("batch").given(losses.LOSSES[name]))
    assert value.isfinite()
