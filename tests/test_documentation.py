"""The documentation: its code runs, its links lead somewhere, and its template is a loss."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops.losses import contrastive
from pairops.losses.objective import registration
from support.named_cases import smooth
from support.on_cpu import device as device
from support.project import ROOT

NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted(f"docs/guides/{path.name}" for path in (ROOT / "docs/guides").glob("*.md"))
ELSEWHERE = ("sentence_transformers", "init_process_group")  # blocks that need more than torch


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def triplets(x: Tensor, labels: Tensor, *, margin: float = 0.1) -> Tensor:
    return pairops.triplet_loss(x, labels, margin=margin)


@pytest.mark.parametrize("page", ["README.md", "docs/losses.md", "docs/training.md", *GUIDES])
def test_code_runs(page: str) -> None:
    """That of the README and of each task's guide with nothing before it."""
    known: dict[str, Any] = {} if page == "README.md" or page in GUIDES else {
        "x": smooth(32, 64), "y": smooth(32, 64).flip(0), "labels": torch.arange(32) // 4,
        "images": smooth(32, 64), "network": torch.nn.Linear(64, 8), "my_loss": triplets,
        "pairops": pairops, "torch": torch,
    }  # fmt: skip
    for block in blocks(page):
        if not any(word in block for word in ELSEWHERE):
            exec(block, known)


def test_the_calls_of_the_readme_are_those_of_the_guides() -> None:
    """Which tests hold to the numbers of what they replace."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Coming from")[2]
    rows = [row for row in table.partition("##")[0].splitlines() if row.startswith("| ")]
    calls = {code for row in rows for code in re.findall(r"`([a-z_]+_loss\(.*?\))`", row)}
    assert calls
    guide = (ROOT / "docs/coming_from.md").read_text(encoding="utf-8")
    assert not [call for call in calls if f"`{call}`" not in guide]


def test_every_page_is_in_the_list() -> None:
    listed = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    names = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert not [name for name in names - {"README.md"} if f"]({name})" not in listed]


def test_the_template_is_a_loss() -> None:
    known = dict(vars(contrastive), loss=functools.partial(registration.loss, registered=False))
    (block,) = blocks("CONTRIBUTING.md")
    exec(block, known)
    x, labels = smooth(12, 5).double(), torch.arange(12) // 3
    unit = torch.nn.functional.normalize(x)
    signed = torch.where(labels[:, None] == labels, -16.0, 16.0) * (unit @ unit.T - 0.5)
    others = ~torch.eye(12, dtype=torch.bool)
    expected = (torch.nn.functional.softplus(signed) * others).sum(1).mean()
    torch.testing.assert_close(known["logistic_pair_loss"](x, labels), expected)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        assert link
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
