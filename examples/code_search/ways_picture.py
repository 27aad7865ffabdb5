"""The picture of several ways to train, with a mark for every seed."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure


def draw_ways(path: Path, title: str, found: dict[str, list[float]]) -> None:
    """Save the picture; found: by the name of a way, the measure of every seed."""
    figure = Figure(figsize=(9, 0.7 + 0.5 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        mean = statistics.mean(values)
        axes.barh(place, mean, color="0.6" if len(values) == 1 else "C0", height=0.6)
        axes.plot(values, [place] * len(values), "|", color="black", markersize=12)
        axes.annotate(f" {mean:.3f}", (max(values), place), va="center")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(title=title, xlim=(0, 1.15 * max(max(values) for values in found.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
