"""The notebooks: their code prints what they say, links lead somewhere, and they become pages."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from support import notebooks
from support.exhaustive import exhaustive
from support.on_cpu import device as device
from support.project import ROOT

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
EACH = pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)


def texts(notebook: dict[str, Any]) -> list[str]:
    """What the code cells print, in one text for each."""
    cells = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = [[out.get("text") or out["data"]["text/plain"] for out in outputs] for outputs in cells]
    return ["".join(line for lines in outputs for line in lines) for outputs in shown]


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@exhaustive
@EACH
def test_its_code_prints_what_it_says(path: Path) -> None:
    """But for the last digits of numbers, which are of one machine."""
    written = texts(json.loads(path.read_text(encoding="utf-8")))
    found = texts(notebooks.executed(path))
    assert any(written)
    for ours, theirs in zip(found, written, strict=True):
        assert NUMBER.sub("#", ours).split() == NUMBER.sub("#", theirs).split()
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=0.03, abs=0.02)


@EACH
def test_it_is_kept_without_what_changes_from_run_to_run(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == notebooks.written(notebook)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert cell.get("execution_count") is None
        assert all(len("".join(text)) < 2000 for text in texts({"cells": [cell]}))


@EACH
def test_its_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]*)", text):
        assert (path.parent / link).exists(), link


def test_it_becomes_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    importlib.import_module("pages").copied(ROOT / "docs/notebooks/quickstart.ipynb", tmp_path)
    page = (tmp_path / "notebooks/quickstart.md").read_text(encoding="utf-8")
    assert page.startswith("# Quickstart\n")
    assert "```python\nimport torch\n" in page
    assert "```text\nloss 0." in page
    assert "(own_loss.md)" in page
