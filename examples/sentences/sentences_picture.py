"""The picture of the fine-tuning: loss curves, recall of each way, heads by batch, and memory."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measures import Ranks, difference, mean


def draw_curves(axes: Axes, curves: dict[int, list[float]]) -> None:
    for place, (size, curve) in enumerate(curves.items()):
        seen = size * np.arange(1, len(curve) + 1)
        axes.plot(seen, curve, f"C{place}.-", linewidth=0.8, label=f"batch {size:,}")
    axes.set(title="Fine-tuning: more negatives, higher loss", xlabel="pairs seen", ylabel="loss")
    axes.set_ylim(0)
    axes.legend(frameon=False)


def draw_recall(axes: Axes, found: dict[str, Ranks]) -> None:
    means = [mean(ranks, "recall@1") for ranks in found.values()]
    places = np.arange(len(found))
    values, errors = [m.value for m in means], [m.error for m in means]
    axes.barh(places, values, xerr=errors, color="C0", height=0.6, capsize=3)
    for place, m in zip(places, means, strict=True):
        axes.annotate(f" {m.value:.3f}", (m.value + m.error, place), va="center")
    axes.set_yticks(places, list(found))
    axes.invert_yaxis()
    axes.set(title="recall@1 on the test, ± standard error", xlim=(0, 1.25 * max(values)))


def draw_heads(axes: Axes, heads: dict[int, Ranks], before: Ranks) -> None:
    """By what a head adds, query by query: what is hard for all is not in the error."""
    gains = [difference(ranks, before, "MRR") for ranks in heads.values()]
    sizes = list(heads)
    values, errors = [m.value for m in gains], [m.error for m in gains]
    axes.errorbar(sizes, values, errors, fmt="o-", capsize=3, label="mean of the seeds")
    for size, ranks in heads.items():
        alone = [difference([one], before, "MRR").value for one in ranks]
        label = "each of them" if size == sizes[0] else None
        axes.plot([size] * len(alone), alone, "k_", markersize=9, label=label)
    axes.set(title="A head on cached embeddings", xlabel="pairs in a batch", ylabel="MRR gained")
    axes.set_ylim(min(0.0, *values))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.legend(frameon=False)


def draw_memory(axes: Axes, memory: dict[str, float]) -> None:
    places = np.arange(len(memory))
    bars = axes.barh(places, list(memory.values()), color="C1", height=0.6)
    axes.bar_label(bars, [f" {mib:,.0f}" for mib in memory.values()])
    axes.set_yticks(places, list(memory))
    axes.invert_yaxis()
    axes.set(
        title="Memory that a step adds, MiB", xscale="log", xlim=(10, 10 * max(memory.values()))
    )


def draw(
    path: Path,
    title: str,
    curves: dict[int, list[float]],
    found: dict[str, Ranks],
    heads: dict[int, Ranks],
    memory: dict[str, float],
) -> None:
    """Save the picture; found and heads: the ranks of the right answers, of each seed."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(title)
    (curves_axes, recall_axes), (heads_axes, memory_axes) = figure.subplots(2, 2)
    draw_curves(curves_axes, curves)
    draw_recall(recall_axes, found)
    draw_heads(heads_axes, heads, found["before training"])
    draw_memory(memory_axes, memory)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
