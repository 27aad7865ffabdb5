"""The page of papers: every call runs, and every recipe is its formula."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import pairops
from support.on_cpu import device as device
from support.project import ROOT

PAGE = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
SYSTEMS = [
    (cells[0], cells[1])
    for line in PAGE.splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) >= 2
    and line.startswith("| ")
    and cells[0] != "system"
]
CALLS = [(name, call.strip("`")) for name, call in SYSTEMS if call.startswith("`")]
OUT = [name for name, call in SYSTEMS if call == "out"]
N, D, C = 12, 6, 4


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    known: dict[str, Any] = {}
    for block in blocks("papers.md"):
        exec(block, known)
    return known


@pytest.fixture
def given() -> dict[str, Any]:
    """What the head of the page says, in float64."""
    labels = torch.arange(N) // 3
    numbers = {"dtype": torch.float64}
    table = torch.rand(5, 7, **numbers)
    return {
        "x": torch.randn(N, D, **numbers, requires_grad=True),
        "y": torch.randn(N, D, **numbers, requires_grad=True),
        "labels": labels,
        "partners": (labels + 1) % C,
        "values": torch.rand(N, **numbers),
        "predictions": torch.rand(N, **numbers),
        "several": torch.rand(N, 5) < 0.4,
        "classes": torch.randn(C, D, **numbers),
        "rows": torch.arange(N).repeat(2),
        "cols": torch.cat([labels, (labels + 1) % C]),
        "queue": torch.randn(2 * N, D, **numbers),
        "queue_labels": torch.arange(2 * N) // 6,
        "teacher": torch.randn(N, 5, **numbers),
        "gate": torch.rand(N, D, **numbers),
        "u": torch.randn(N, 3, **numbers),
        "v": torch.randn(N, 3, **numbers),
        "g": torch.randn(N, 3, **numbers, requires_grad=True),
        "h": torch.randn(N, 3, **numbers, requires_grad=True),
        "own_negatives": torch.randn(N, 2, D, **numbers),
        "log_q": torch.rand(N, **numbers).log(),
        "relevance": table,
        "x_classes": torch.arange(N) % 5,
        "y_classes": torch.arange(N) % 7,
        "tokens": torch.randn(N, D, **numbers, requires_grad=True),
        "bags": torch.arange(N) // 3,
        "other_tokens": torch.randn(2 * N, D, **numbers),
        "other_bags": (torch.arange(2 * N) // 5).clamp(max=C - 1),
    }


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_a_call_runs(name: str, call: str, recipes: dict[str, Any], given: dict[str, Any]) -> None:
    del name
    everything = {**vars(pairops), **{k: getattr(pairops, k) for k in pairops.__all__}}
    value = eval(call, {"torch": torch, **everything, **recipes, **given})
    made = value if isinstance(value, tuple) else (value,)
    assert all(bool(torch.isfinite(z).all()) for z in made)
    if isinstance(value, torch.Tensor):  # what is ranked has no gradient
        (gradient,) = torch.autograd.grad(value, given["tokens" if "tokens" in call else "x"])
        assert torch.isfinite(gradient).all()
        assert bool((gradient != 0).any())


def test_the_page_counts_its_rows() -> None:
    told = f"The page has {len(SYSTEMS)} systems: {len(CALLS)} calls, {len(OUT)} out."
    assert told in PAGE
    assert len(SYSTEMS) == len(CALLS) + len(OUT) == len(dict(SYSTEMS))


def formulas(g: dict[str, Any]) -> dict[str, Tensor]:
    """The recipes as their papers write them, over the whole matrix."""
    x, y = (normalize(g[k]) for k in ("x", "y"))
    s, own = x @ y.T, (x * y).sum(1)
    others = ~torch.eye(N, dtype=torch.bool)
    z = s / 0.07
    negatives = z.exp().mul(others).sum(1)
    soft = s / 0.5
    focal = torch.where(others, s * (s + 0.3), s * s) / 0.05
    tokens, scores = normalize(g["tokens"]), torch.empty(C, C, dtype=torch.float64)
    nearest = tokens @ normalize(g["other_tokens"]).T
    for b in range(C):
        for c in range(C):
            block = nearest[g["bags"] == b][:, g["other_bags"] == c]
            scores[b, c] = block.amax(1).mean()
    return {
        "info_loob(x, y)": (negatives.log() - own / 0.07).mean(),
        "rince(x, y)": (
            ((0.01 * soft.exp().sum(1)) ** 0.5 - (own / 0.5).exp() ** 0.5) / 0.5
        ).mean(),
        "focal_info_nce(x, y)": -torch.log_softmax(focal, 1).diagonal().mean(),
        "temperature_of_heads(x, y, g, h)": cross_entropy(s * (g["g"] @ g["h"].T), torch.arange(N)),
        "max_sim(tokens, bags, other_tokens, other_bags)": cross_entropy(scores, torch.arange(C)),
    }


RECIPES = [
    call for _, call in CALLS if not re.search(r"_loss|retrieval\.", call) and call[0].islower()
]


@pytest.mark.parametrize("call", RECIPES)
def test_a_recipe_is_its_formula(call: str, recipes: dict[str, Any], given: dict[str, Any]) -> None:
    found = eval(call, {**recipes, **given})
    truth = formulas(given)[call]
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    leaves = [
        z
        for z in given.values()
        if z.requires_grad and ("tokens" in call) == (z is given["tokens"])
    ]
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, allow_unused=True),
        torch.autograd.grad(truth, leaves, allow_unused=True),
        strict=True,
    ):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
