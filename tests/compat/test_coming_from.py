"""docs/coming_from.md: both sides of every line have one value and one gradient."""

import functools
import inspect
import math
import re
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor
from torch.nn.functional import normalize

import pairops
from pairops.compat import open_clip, pml
from pairops.compat.pml.refused import CALLS, OTHERS
from support.named_cases import smooth
from support.on_cpu import device as device
from support.project import ROOT

DOUBLE = torch.float64
PAGE = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
C, D = 6, 8


def tables(head: str) -> list[list[str]]:
    """The cells of all tables whose first line begins so."""
    found = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for table in found
        for line in table.splitlines()
    ]


OF_PML = [row for row in tables("pytorch-metric-learning") if len(row) == 2]
OTHER = [row for row in tables("pytorch-metric-learning") if len(row) == 3]
SEEN = {
    **{name: getattr(pairops, name) for name in pairops.__all__},
    **{"torch": torch, "C": C, "D": D},
}


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(z, leaves) for z in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def made(code: str) -> Any:
    torch.manual_seed(3)
    loss = eval(code, {**vars(losses), **vars(miners), "C": C, "D": D})
    loss = loss.double()
    if code == "MarginLoss()":
        loss.beta = torch.tensor([1.2], dtype=DOUBLE)  # not rounded to float32
    return loss


@pytest.mark.parametrize(("there", "here"), OF_PML, ids=[codes(row[0])[-1] for row in OF_PML])
def test_of_pytorch_metric_learning(there: str, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, *mined = [made(code) for code in codes(there)]
    if "SmoothAP" in there:  # in float64, and as many classes as each has rows
        labels = torch.arange(25) // 5
        monkeypatch.setattr(torch, "zeros", functools.partial(torch.zeros, dtype=DOUBLE))
    else:
        labels = torch.randint(0, C - 1, (25,))
        labels[0] = C - 1  # alone
    x = (0.7 * smooth(25, D, DOUBLE)).requires_grad_()
    expected = theirs(x, labels, *[miner(x, labels) for miner in mined])
    monkeypatch.undo()
    names = ("W", "proxies", "scale", "temperature", "margin")
    known = {name: getattr(theirs, name) for name in names if hasattr(theirs, name)}
    (code,) = codes(here)
    found = eval(code, {**SEEN, **known, "x": x, "labels": labels})
    same(found, expected, [x, *theirs.parameters()])


@pytest.mark.parametrize(("there", "here"), tables("open_clip"))
def test_of_open_clip(there: str, here: str) -> None:
    (name,), (code,) = codes(there), codes(here)
    x, y = (smooth(n, D, DOUBLE).requires_grad_() for n in (9, 9))
    scale, bias = (torch.tensor(z, dtype=DOUBLE).requires_grad_() for z in (7.0, -3.0))
    theirs = eval(name, vars(open_clip))(x, y, scale, bias)
    leaves = [x, y, scale] + [bias] * ("SigLip" in name)
    same(
        eval(code, {**SEEN, "x": x, "y": y, "logit_scale": scale, "logit_bias": bias}),
        theirs,
        leaves,
    )


def softmax_over_others(rows: Tensor, labels: Tensor, temperature: float, anchors: int) -> Tensor:
    """Of each of the first rows the mean, over rows with its label, of −log softmax over all but
    itself; then the mean of these."""
    found = []
    for i in range(anchors):
        others = torch.arange(len(rows)) != i
        log_share = (rows[others] @ rows[i] / temperature).log_softmax(0)
        found.append(-log_share[labels[others] == labels[i]].mean())
    return torch.stack(found).mean()


def of_supcontrast(
    temperature: float = 0.07, contrast_mode: str = "all", base_temperature: float = 0.07
) -> Any:
    def loss(features: Tensor, labels: Tensor | None = None) -> Tensor:
        n, views, _ = features.shape
        labels = (torch.arange(n) if labels is None else labels).repeat(views)
        rows = features.transpose(0, 1).flatten(0, 1)
        anchors = n if contrast_mode == "one" else n * views
        factor = temperature / base_temperature
        return factor * softmax_over_others(rows, labels, temperature, anchors)

    return loss


def nt_xent_of_lightly(memory_bank_size: tuple[int, int] | None = None) -> Any:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        x, y = normalize(x), normalize(y)
        if memory_bank_size is None:
            pairs = torch.arange(len(x)).repeat(2)
            return softmax_over_others(torch.cat([x, y]), pairs, 0.5, 2 * len(x))
        own = (x * y).sum(1, keepdim=True)
        logits = torch.cat([own, x @ normalize(QUEUE).T], 1) / 0.5
        return -logits.log_softmax(1)[:, 0].mean()

    return loss


def supcon_of_lightly(rescale: bool = True) -> Any:
    def loss(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        rows = normalize(torch.cat([x, y]))
        value = softmax_over_others(rows, labels.repeat(2), 0.5, len(rows))
        return 0.5 * value if rescale else value

    return loss


QUEUE = smooth(13, D, DOUBLE).flip(1)
WRITTEN = {
    "SupContrast": {"SupConLoss": of_supcontrast},
    "lightly": {"NTXentLoss": nt_xent_of_lightly, "SupConLoss": supcon_of_lightly},
}


@pytest.mark.parametrize(
    ("library", "there", "here"),
    [(library, *row) for library in WRITTEN for row in tables(library)],
)
def test_of_code_without_a_package(library: str, there: str, here: str) -> None:
    features = smooth(18, D, DOUBLE).view(9, 2, D).requires_grad_()
    known = {
        "features": features, "x": features[:, 0], "y": features[:, 1], "queue": QUEUE, "N": 9,
        "V": 2, "Q": 13, "D": D, "labels": torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4]),
    }  # fmt: skip
    (theirs,), (code,) = codes(there), codes(here)
    expected = eval(theirs, {**WRITTEN[library], **known})
    same(eval(code, {**SEEN, **known}), expected, [features])


def test_every_loss_of_pytorch_metric_learning_is_on_the_page() -> None:
    named = {n for n, kind in vars(losses).items() if inspect.isclass(kind) and n.endswith("Loss")}
    named |= {"CrossBatchMemory", "MultipleLosses"}
    named -= {"GenericPairLoss"}  # whose subclasses are losses
    assert len(named) > 35
    text = " ".join(code for code in codes(PAGE))
    assert not [name for name in named if not re.search(rf"\b{name}\b", text)]


def test_what_is_refused_says_what_the_page_says() -> None:
    by_call = {codes(row[0])[0].partition("(")[0]: codes(row[1])[0] for row in OF_PML}
    refused = {name: code for name, code in by_call.items() if name not in pml.__all__}
    for name in ("SelfSupervisedLoss", "MultipleLosses", "CrossBatchMemory"):
        assert f"`{CALLS[name]}`" in PAGE
    assert {n: c.removeprefix("pairops.") for n, c in CALLS.items() if n in refused} == refused
    page = {n: (row[1], (*codes(row[2]), None)[0]) for row in OTHER for n in codes(row[0])}
    assert page == OTHERS
    assert all(hasattr(pairops, near) for _, near in OTHERS.values() if near)


def test_wrappers_wrap_what_is_converted() -> None:
    x, y = (smooth(12, D, DOUBLE).requires_grad_() for _ in range(2))
    labels = torch.arange(12) // 3
    loss = losses.NTXentLoss()
    mine = pml.convert(loss)
    for wrapped in (losses.SelfSupervisedLoss, lambda one: one):
        given = (x, y) if wrapped is losses.SelfSupervisedLoss else (x, labels)
        same(wrapped(mine)(*given), wrapped(loss)(*given), [x])
    same(losses.MultipleLosses([mine])(x, labels), losses.MultipleLosses([loss])(x, labels), [x])
    memories = [losses.CrossBatchMemory(one, D, memory_size=40) for one in (mine, loss)]
    for _ in range(2):
        ours, theirs = (memory(x, labels) for memory in memories)
    same(ours, theirs, [x])


def test_the_margin_of_arcface_does_not_turn_back() -> None:
    """Beyond π − margin the loss is that library's too."""
    loss = losses.ArcFaceLoss(2, 2, margin=90).double()
    x = torch.tensor([[-1.0, 0.2]], dtype=DOUBLE, requires_grad=True)
    loss.W.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE)
    labels = torch.tensor([0])
    ours = pairops.arcface_loss(x, labels, loss.W.T, margin=math.pi / 2)
    same(ours, loss(x, labels), [x, loss.W])
