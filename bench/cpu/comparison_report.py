"""The report of the comparison: its rows, a table of them to read now, and a picture to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.report import number, percent, write_figures
from bench.yardsticks import Rates, gigaflop, products

GREY = "#777777"
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


@dataclass
class Row:
    """What one contestant did at one N; what is None was not measured, and `failure` says why.

    of_hot and of_peak are shares of the yardsticks' rates, for the products that the loss needs.
    """

    loss: str
    n: int
    contestant: str
    label: str
    ms: float | None = None
    ms_q1: float | None = None
    ms_q3: float | None = None
    forward_ms: float | None = None
    of_hot: float | None = None
    of_peak: float | None = None
    forward_of_hot: float | None = None
    forward_of_peak: float | None = None
    peak_mib: float | None = None
    value: float | None = None
    truth: float | None = None
    failure: str | None = None


def table(rows: Sequence[Row], reached: Mapping[int, Rates]) -> str:
    """One block per N; a failure stands where the figures would."""
    width = max(len(row.label) for row in rows)
    head = f"{'N':>7}  {'':{width}}  {'ms':>8}  {'quartiles':>17}  {'fwd':>8}  {'of hot':>7}"
    head += f"  {'of FMA':>7}  {'peak MiB':>8}"
    lines = [head]
    for n, block in groupby(rows, key=lambda row: row.n):
        lines.append("─" * len(head))
        rates = reached[n]
        lines.append(f"{n:>7}  GFLOP/s: hot {number(rates.hot)}, FMA {number(rates.peak)}")
        for row in block:
            line = f"{n:>7}  {row.label:{width}}"
            if row.failure is None:
                quartiles = f"{number(row.ms_q1)} … {number(row.ms_q3)}"
                line += f"  {number(row.ms):>8}  {quartiles:>17}  {number(row.forward_ms):>8}"
                line += f"  {percent(row.of_hot):>7}  {percent(row.of_peak):>7}"
                line += f"  {number(row.peak_mib):>8}"
            else:
                line += f"  {row.failure}"
            lines.append(line)
    return "\n".join(lines)


def blockwise_to_dense(rows: Sequence[Row]) -> str:
    """The price of never holding the matrix, against the engine that does hold it."""
    ms = {(row.n, row.contestant): row.ms for row in rows}
    ratios = [
        f"{ms[n, 'blockwise'] / ms[n, 'dense']:.2f} at N={n:,}"
        for n in sorted({row.n for row in rows})
        if ms.get((n, "blockwise")) and ms.get((n, "dense"))
    ]
    if not ratios:
        return "blockwise ÷ dense: not measured"
    return f"blockwise ÷ dense in time (at N=4,096 it is to stay below 2): {', '.join(ratios)}"


def write(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    stamp: dict[str, object],
    reached: Mapping[int, Rates],
) -> tuple[Path, Path]:
    """The picture and, beside it, the figures; a later run of the same name replaces both."""
    rates = [
        {"n": n, "hot_gflops": rates.hot, "peak_gflops": rates.peak} for n, rates in reached.items()
    ]
    figures = write_figures(folder, name, [asdict(row) for row in rows], stamp | {"rates": rates})
    picture = folder / f"{name}.png"
    plot(rows, stamp, reached).savefig(picture, dpi=200)
    return figures, picture


def plot(rows: Sequence[Row], stamp: dict[str, object], reached: Mapping[int, Rates]) -> Figure:
    """The dashed line is the time that the loss's products alone would take at the hot rate."""
    # Small, and so its text is large: the README shows it on telephones, too.
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    time, memory = figure.subplots(1, 2)
    ends = draw(time, rows, "ms", "forward + backward, ms")
    needed, sizes = products(rows[0].loss).both, sorted(reached)
    least = [1e3 * gigaflop(needed, n, stamp["d"]) / reached[n].hot for n in sizes]
    time.plot(sizes, least, "--", color=GREY)
    name_lines(time, [*ends, (least[-1], sizes[-1], "products alone, hot", GREY)])
    name_lines(memory, draw(memory, rows, "peak_mib", "added to peak memory, MiB"))
    machine = stamp["gpu"] or f"{stamp['cpu']}, threads: {stamp['threads']}"
    figure.suptitle(f"{rows[0].loss}_loss: D = {stamp['d']}, {stamp['dtype']}, {machine}")
    figure.supxlabel(
        f"{stamp['date'][:10]}, torch {stamp['torch']}, "
        f"pytorch-metric-learning {stamp['pytorch_metric_learning']}, "
        f"times: medians of {stamp['repeats']} taken in turns, with quartiles",
        fontsize=8,
        color=GREY,
    )
    return figure


End = tuple[float, float, str, str]  # of a line: y, x, its name and its colour


def draw(axes: Axes, rows: Sequence[Row], what: str, title: str) -> list[End]:
    """One line per contestant; returns their right ends, named with what was measured there and how
    many times the first contestant's that is."""
    axes.set(xscale="log", yscale="log", xlabel="N")
    axes.set_title(title, loc="left", fontsize=11)
    keys = list(dict.fromkeys(row.contestant for row in rows))
    ends: list[End] = []
    for at, key in enumerate(keys):
        # A logarithm has no zero: growth that is too small to be seen stands at the noise.
        points = [
            (row.n, max(value, 0.1 if what == "peak_mib" else 0.0), row)
            for row in rows
            if row.contestant == key and (value := getattr(row, what)) is not None
        ]
        if not points:
            continue
        colour = COLOURS[at % len(COLOURS)]
        x, y, kept = zip(*points, strict=True)
        axes.plot(x, y, "-o", color=colour, markersize=4)
        if what == "ms":
            low, high = [row.ms_q1 for row in kept], [row.ms_q3 for row in kept]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        unit = "MiB" if what == "peak_mib" else "ms"
        label = f"{kept[-1].label}\n{number(y[-1])} {unit}"
        if ends and ends[0][1] == x[-1]:  # as many times the first one's
            label += f", {y[-1] / ends[0][0]:.{0 if y[-1] > 10 * ends[0][0] else 1}f} ×"
        ends.append((y[-1], x[-1], label, colour))
    sizes = sorted({row.n for row in rows})
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{int(n):,}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return ends


def name_lines(axes: Axes, ends: list[End]) -> None:
    """Labels to the right of the lines, moved apart where their ends are too close to be read."""
    if not ends:  # nothing was measured
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    to_fraction = axes.transScale + axes.transLimits
    ends = sorted(ends)
    at = [float(to_fraction.transform((x, y))[1]) for y, x, _, _ in ends]
    # Heights of a line of text, and of the labels, which have one or two.
    line = 0.075
    tall = [line * (1 + label.count("\n")) for _, _, label, _ in ends]
    for _ in range(200):
        at[0] = max(at[0], tall[0] / 2)  # above the axis
        at[-1] = min(at[-1], 1 - tall[-1] / 2)  # below the title
        for i in range(len(at) - 1):
            lacking = (tall[i] + tall[i + 1]) / 2 - (at[i + 1] - at[i])
            if lacking > 0:
                at[i] -= lacking / 2
                at[i + 1] += lacking / 2
    for height, (y, x, label, colour) in zip(at, ends, strict=True):
        axes.annotate(
            label,
            (x, y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=10,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 4,
            },
        )
