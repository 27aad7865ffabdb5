"""The picture of unseen digits: how well each loss finds them, and where the best one puts them."""

from pathlib import Path

import numpy as np
from digits_picture import draw_map
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor


def draw_bars(axes: Axes, precision: dict[tuple[str, str], list[float]], raw: float) -> None:
    """A bar for each loss and number of classes, over the mean of its seeds."""
    losses, classes = (list(dict.fromkeys(names)) for names in zip(*precision, strict=True))
    place, height = np.arange(len(losses)), 0.8 / len(classes)
    for k, name in enumerate(classes):
        seeds = [np.array(precision[loss, name]) for loss in losses]
        error = [each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0.0 for each in seeds]
        mean = [each.mean() for each in seeds]
        axes.barh(place + height * k, mean, height, xerr=error, label=name)
    axes.axvline(raw, color="0.3", linestyle="--", label="raw pixels")
    axes.set(title="Digits 5 to 9, learned from 0 to 4", xlabel="MAP@R", xlim=(0, 0.8))
    axes.set_yticks(place + height * (len(classes) - 1) / 2, losses)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def draw(
    path: Path,
    precision: dict[tuple[str, str], list[float]],
    embeddings: dict[tuple[str, str], Tensor],
    raw: float,
    images: Tensor,
    digits: Tensor,
) -> None:
    """Save the picture of MAP@R by (loss, classes), of the pixels, and of the best embedding."""
    figure = Figure(figsize=(16, 5), layout="constrained")
    bars, before, after = figure.subplots(1, 3)
    draw_bars(bars, precision, raw)
    draw_map(before, images, digits)
    before.set_title(f"Raw pixels: MAP@R {raw:.3f}")
    best = max(precision, key=lambda one: np.mean(precision[one]))
    draw_map(after, embeddings[best], digits)
    after.set_title(f"{best[0]} loss, {best[1]}, one seed: MAP@R {precision[best][-1]:.3f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
