"""The picture of a code search: loss curves, and the share of the test that each way finds."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ranking import recall
from torch import Tensor

WITHIN = (1, 10)
COLORS = ("0.6", "C1", "C0", "C2")


def draw_curve(axes: Axes, name: str, curve: list[float]) -> None:
    window = min(25, len(curve))
    smooth = np.convolve(curve, np.ones(window) / window, mode="valid")
    axes.plot(curve, color="0.75", linewidth=0.8, label="each step")
    middle = np.arange(len(smooth)) + (window - 1) / 2
    axes.plot(middle, smooth, color="C0", label=f"mean of {window}")
    axes.set(title=f"{name} loss on the training files", xlabel="step", ylabel="loss")
    axes.set_ylim(min(0.0, *curve), 1.05 * float(np.quantile(curve, 0.995)))
    axes.legend(frameon=False)


def draw_bars(axes: Axes, found: dict[str, Tensor]) -> None:
    width = 0.8 / len(found)
    for place, ((name, ranks), color) in enumerate(zip(found.items(), COLORS, strict=False)):
        left = np.arange(len(WITHIN)) + (place - (len(found) - 1) / 2) * width
        bars = axes.bar(left, [recall(ranks, k) for k in WITHIN], width, color=color, label=name)
        axes.bar_label(bars, fmt="%.3f", fontsize=9)
    axes.set(title="Share of test docstrings that find their code", ylabel="share", ylim=(0, 1))
    axes.set_xticks(range(len(WITHIN)), [f"recall@{k}" for k in WITHIN])
    axes.legend(frameon=False, loc="upper left")


def draw_shares(axes: Axes, found: dict[str, Tensor]) -> None:
    tested = len(next(iter(found.values())))
    within = np.unique(np.geomspace(1, tested, 200).round().astype(int))
    for (name, ranks), color in zip(found.items(), COLORS, strict=False):
        shares = np.searchsorted(np.sort(ranks.numpy()), within, side="right") / tested
        axes.plot(within, shares, color=color, label=name)
    axes.plot(within, within / tested, color="0.3", linestyle=":", label="chance")
    axes.set(title="The same within any number of answers", xlabel="answers looked at")
    axes.set(ylabel="share", xscale="log", xlim=(1, tested), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")


def draw(path: Path, title: str, curves: dict[str, list[float]], found: dict[str, Tensor]) -> None:
    """Save the picture; found: by the name of a way of search, the rank of each right answer."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle(title)
    top, bottom = figure.subfigures(2, 1)
    places = top.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, curve) in zip(places, curves.items(), strict=True):
        draw_curve(axes, name, curve)
    bars_axes, shares_axes = bottom.subplots(1, 2)
    draw_bars(bars_axes, found)
    draw_shares(shares_axes, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
