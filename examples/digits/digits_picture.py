"""The picture of a training: loss curve, test embedding, similarities before and after."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import normalize

BADGE = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "0.4", "alpha": 0.8}


def similarities(embedding: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of one class, and of all pairs of two."""
    unit = normalize(embedding, dim=1)
    row, column = torch.triu_indices(len(unit), len(unit), offset=1)
    cosine = (unit @ unit.T)[row, column]
    same = labels[row] == labels[column]
    return cosine[same].numpy(), cosine[~same].numpy()


def draw_curve(axes: Axes, curve: list[float]) -> None:
    window = min(25, len(curve))
    smooth = np.convolve(curve, np.ones(window) / window, mode="valid")
    axes.plot(curve, color="0.75", linewidth=0.8, label="each step")
    middle = np.arange(len(smooth)) + (window - 1) / 2
    axes.plot(middle, smooth, color="C0", label=f"mean of {window}")
    axes.set(title="Loss on the training half", xlabel="step", ylabel="loss")
    axes.set_ylim(min(0.0, *curve), 1.05 * float(np.quantile(curve, 0.995)))
    axes.legend(frameon=False)


def draw_similarities(axes: Axes, title: str, embedding: Tensor, labels: Tensor) -> None:
    positive, negative = similarities(embedding, labels)
    style = {"bins": np.linspace(-1, 1, 81), "density": True, "alpha": 0.6}
    axes.hist(negative, color="C3", label="negative: two digits", **style)
    axes.hist(positive, color="C0", label="positive: the same digit", **style)
    axes.set(title=title, xlabel="cosine similarity", ylabel="density", xlim=(-1, 1))
    axes.legend(frameon=False, loc="upper left")


def draw_map(axes: Axes, embedding: Tensor, labels: Tensor) -> None:
    pca = PCA(n_components=2)
    flat = pca.fit_transform(normalize(embedding, dim=1).numpy())
    for digit in labels.unique().tolist():
        x, y = flat[(labels == digit).numpy()].T
        axes.scatter(x, y, s=16, color=f"C{digit}", alpha=0.7, linewidths=0, label=str(digit))
        axes.text(np.median(x), np.median(y), str(digit), ha="center", va="center", bbox=BADGE)
    kept = pca.explained_variance_ratio_.sum()
    axes.set(title=f"Test embedding, first two principal axes ({kept:.0%} of variance)")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.legend(title="digit", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def draw(
    path: Path, title: str, curve: list[float], before: Tensor, after: Tensor, labels: Tensor
) -> None:
    """Save the picture of the test embeddings `before` and `after` training."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle(title)
    top, bottom = figure.subfigures(2, 1)
    curve_axes, map_axes = top.subplots(1, 2)
    before_axes, after_axes = bottom.subplots(1, 2, sharex=True, sharey=True)
    draw_curve(curve_axes, curve)
    draw_map(map_axes, after, labels)
    draw_similarities(before_axes, "Pairs of the test half before training", before, labels)
    draw_similarities(after_axes, "Pairs of the test half after training", after, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
