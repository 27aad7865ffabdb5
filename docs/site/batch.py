"""One batch for the page of every loss: what its loss gives each pair there, as a picture."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

import pairops

CLASSES, EACH, D = 6, 8, 16
POSITIVE, NEGATIVE = "#1f77b4", "#d62728"


def tensors() -> dict[str, Tensor]:
    """Rows about the centres of classes that lie apart, and what losses take besides."""
    made = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    centres = normal(CLASSES, D)
    x = normalize(centres[labels] + 0.9 * normal(len(labels), D))
    y = normalize(x + 0.15 * normal(len(labels), D))
    return {
        "x": x, "labels": labels, "y": y, "proxies": centres, "positives": y.unsqueeze(1),
        "values": labels.float(), "predictions": labels.roll(1) / 2,
        "queue": normalize(x + 0.3 * normal(len(labels), D)), "teacher": normal(len(labels), D),
        "teacher_x": x.roll(1, 1), "teacher_y": y.roll(1, 1), "scores": labels / CLASSES,
        "gate": torch.sigmoid(normal(len(labels), D)), "partner_labels": labels,
    }  # fmt: skip


def given(loss: Callable[..., Any]) -> dict[str, Tensor]:
    """What this loss must be given, by name."""
    known, parameters = tensors(), inspect.signature(loss).parameters.values()
    return {
        p.name: known["x" if k == 0 else p.name]
        for k, p in enumerate(parameters)
        if k == 0 or p.default is p.empty
    }


def draw(loss: Callable[..., Any], path: Path) -> str | None:
    """Draw the pair weights of a loss; return why there are none, where there are none."""
    arguments = given(loss)
    x = arguments.pop(next(iter(arguments)))
    try:
        weights = pairops.pair_weights(loss, x, **arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    rows, cols, same = _sides(x, arguments, weights)
    if same is None:
        return f"its weights are {tuple(weights.shape)}, of other rows than those of the batch"
    similarity = normalize(rows) @ normalize(cols).T
    pairs = torch.ones_like(same) if cols is not rows else ~torch.eye(len(rows), dtype=torch.bool)
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    for chosen, colour, label in ((~same, NEGATIVE, "negatives"), (same, POSITIVE, "positives")):
        shown = chosen & pairs
        axes.scatter(similarity[shown], weights[shown], s=7, color=colour, alpha=0.5, label=label)
    axes.axhline(0, color="#888888", linewidth=0.6)
    axes.set(xlabel="cosine of the pair", ylabel="weight of the pair")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return None


def _sides(
    x: Tensor, arguments: dict[str, Tensor], weights: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the rows and the columns of the weights, and which pairs are positives."""
    labels = tensors()["labels"]
    classes = torch.arange(CLASSES)
    if "proxies" in arguments:
        proxies = arguments["proxies"]
        if len(weights) == len(proxies):
            return proxies, x, classes[:, None] == labels
        return x, proxies, labels[:, None] == classes
    other = arguments.get("y", x)
    if weights.shape != (len(x), len(other)):
        return x, other, None
    if "labels" in arguments or "values" in arguments:
        return x, other, labels[:, None] == labels
    return x, other, torch.eye(len(x), dtype=torch.bool)
