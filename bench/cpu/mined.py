"""The backward pass late in training: what it saves by skipping tiles that mining has emptied.

The embeddings have learned: classes are tight around centres that are random on the sphere. How
tight decides how many tiles keep a pair: between almost none and almost all lies little noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import pairops
from bench.contestants import Step
from bench.options import RESULTS, at_least, extension
from bench.report import columns, number, write_figures
from bench.stamp import stamp
from bench.stopwatch import Times, take_turns
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import NEG, POS, Wanted, highest, lowest, lse

BETA, BASE, EPSILON = 50.0, 0.5, 0.1  # ms_loss's own


def learned(n: int, d: int, per_class: int, noise: float) -> tuple[Tensor, Tensor]:
    """Embeddings and labels, shuffled; noise is the length of what is added to a centre."""
    random = torch.Generator().manual_seed(0)
    labels = (torch.arange(n) // per_class)[torch.randperm(n, generator=random)]
    centres = F.normalize(torch.randn(n // per_class + 1, d, generator=random))
    return centres[labels] + noise / d**0.5 * torch.randn(n, d, generator=random), labels


def without_bits(*call: Any) -> Any:
    """The engine's backward sweep, through every tile."""
    *others, _, needs, plan = call
    return planned_backward(*others, None, needs, plan)


planned_backward = cpu_engine.planned_backward


def steps_of(x: Tensor, labels: Tensor) -> tuple[dict[str, Step], float]:
    """The sweep over the mined negatives and ms_loss's whole backward pass, each with the bits and
    without; and the share of the visited tiles, on and above the diagonal, whose bit is set."""
    n = len(x)
    pairs = Pairs.of(x, labels)
    (far,), _, _ = cpu_engine.forward(pairs, [lowest(POS, grad=False)], [])
    mined = lse(NEG, BETA, BASE, above=far - EPSILON)
    (_, statistic), _, bits = cpu_engine.forward(pairs, [highest(NEG, grad=False), mined], [])
    cotangent = torch.sigmoid(statistic) / (BETA * n)
    tiles = bits.shape[1]

    def sweep(bits: Tensor | None) -> Tensor:
        needs = Wanted(True, False)
        return cpu_engine.backward(pairs, [mined], [], [statistic], [cotangent], bits, needs)[0]

    leaf = x.clone().requires_grad_()
    with pairops.engine("cpu"):
        value = pairops.ms_loss(leaf, labels)

    def backward() -> Tensor:
        return torch.autograd.grad(value, leaf, retain_graph=True)[0]

    def backward_everywhere() -> Tensor:
        with mock.patch.object(cpu_engine, "planned_backward", without_bits):
            return backward()

    steps: dict[str, Step] = {
        "sweep": lambda: sweep(bits),
        "sweep_everywhere": lambda: sweep(None),
        "backward": backward,
        "backward_everywhere": backward_everywhere,
    }
    return steps, bits.triu().sum().item() / (tiles * (tiles + 1) / 2)


def measure(options: argparse.Namespace, noise: float) -> dict[str, Any]:
    x, labels = learned(options.n, options.d, options.per_class, noise)
    steps, kept = steps_of(x, labels)
    row: dict[str, Any] = {"noise": noise, "tiles_kept": kept}
    for name in ("sweep", "backward"):
        row[f"{name}_equal"] = torch.equal(steps[name](), steps[f"{name}_everywhere"]())
    seconds, failures = take_turns(steps, options.repeats, "cpu", lambda: None)
    if failures:
        raise RuntimeError("; ".join(failures.values()))
    for name, taken in seconds.items():
        row[name] = asdict(Times.of(taken))
    for name in ("sweep", "backward"):
        row[f"{name}_ratio"] = row[f"{name}_everywhere"]["ms"] / row[name]["ms"]
    return row


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--n", type=at_least(2), default=4096)
    add("--d", type=at_least(1), default=128)
    add("--per-class", type=at_least(2), default=8)
    noises = [0.8, 1.0]
    add("--noise", nargs="+", type=float, default=noises, help="length of the noise on a centre")
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--repeats", type=at_least(2), default=15, help="timed calls of each")
    add("--output", type=Path, default=RESULTS, help="folder for mined-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    extension()
    torch.set_num_threads(options.threads)
    conditions = stamp(list(argv), "cpu") | {
        name: getattr(options, name) for name in ("n", "d", "per_class", "repeats")
    }
    conditions["dtype"] = "float32"
    rows = [
        measure(options, noise)
        for noise in tqdm(options.noise, desc="mined", leave=False, disable=None)
    ]
    print(f"\nms_loss on embeddings that have learned: N={options.n}, D={options.d}, ", end="")
    print(f"{options.per_class} of a class, float32, {conditions['cpu']}, threads: ", end="")
    print(f"{options.threads}, load {conditions['load']}, medians of {options.repeats} ", end="")
    print("taken in turns: ms with tiles skipped, ms of every tile visited\n")
    head = ["noise", "tiles kept"]
    for name in ("sweep", "backward"):
        head += [name, "every tile", "ratio", "equal"]
    print(columns(head, [cells(row) for row in rows]))
    print(f"written: {write_figures(options.output, 'mined-cpu', rows, conditions)}")


def cells(row: dict[str, Any]) -> list[object]:
    line: list[object] = [row["noise"], f"{row['tiles_kept']:.1%}"]
    for name in ("sweep", "backward"):
        line += [number(row[name]["ms"]), number(row[f"{name}_everywhere"]["ms"])]
        line += [f"{row[f'{name}_ratio']:.2f}", "yes" if row[f"{name}_equal"] else "NO"]
    return line
