"""`python -m bench`: what pairops costs, beside one torch.mm and what people use today."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from bench.contestants import YARDSTICKS, contestants
from bench.cpu import kernel, large, mined, retrieval
from bench.cpu.comparison import compare, work
from bench.distributed import ring
from bench.gpu import entry as gpu
from bench.guard import TOLERANCE
from bench.memory import cached
from bench.options import RESULTS, at_least
from bench.problems import Setting, losses
from bench.report import blockwise_to_dense, table, write
from bench.stamp import stamp

D = Setting.d


def comparison_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", nargs="+", choices=losses(), default=["ms"])
    sizes = [256, 512, 1024, 2048, 4096]
    add("--n", nargs="+", type=at_least(2), default=sizes, help="batch sizes")
    add("--d", nargs="+", type=at_least(1), default=[D], help="dimensions of the embedding")
    add("--per-class", type=at_least(1), default=4, help="embeddings of each class")
    add("--dtype", choices=list(TOLERANCE), default="float32")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--repeats", type=at_least(2), default=15, help="timed calls of each contestant at each N")
    add("--contestants", nargs="+", choices=list(contestants()), default=list(contestants()))
    add("--no-compile", action="store_true", help="without torch.compile: saves a minute per N")
    add(
        "--output",
        type=Path,
        default=RESULTS,
        help=f"folder for LOSS-DEVICE[-dD].json and .png; no suffix for D={D}",
    )


def run_comparison(options: argparse.Namespace, argv: Sequence[str]) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    keys = [key for key in contestants() if key in {*YARDSTICKS, *options.contestants}]
    if options.no_compile and "compiled" in keys:
        keys.remove("compiled")
    conditions = stamp(list(argv), options.device) | {
        name: getattr(options, name) for name in ("per_class", "dtype", "device", "repeats")
    }
    conditions["tolerance_of_loss"], conditions["tolerance_of_gradient"] = TOLERANCE[options.dtype]
    for loss, d in product(options.loss, options.d):
        settings = [
            Setting(loss, n, d, options.per_class, options.dtype, options.device, options.threads)
            for n in sorted(options.n)
        ]
        rows = []
        total = work(settings, keys, options.repeats)
        with tqdm(total=total, desc=f"{loss} D={d}", leave=False, disable=None) as bar:
            for setting in settings:
                rows += compare(setting, keys, options.repeats, bar)
        print(f"\n{loss}_loss, forward + backward, and forward alone (fwd): D={d}, ", end="")
        print(f"{options.dtype}, {conditions['gpu'] or conditions['cpu']}, ", end="")
        print(f"threads: {options.threads}, load {conditions['load']}, ", end="")
        print(f"medians of {options.repeats} taken in turns\n")
        print(table(rows))
        print(f"\n{blockwise_to_dense(rows)}")
        name = f"{loss}-{options.device}" + ("" if d == D else f"-d{d}")
        for path in write(options.output, name, rows, conditions | {"d": d}):
            print(f"written: {path}")


Command = tuple[
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.Namespace, Sequence[str]], None],
    str,
]

# `python -m bench NAME ...`: its options, what it runs, its line of help.
COMMANDS: dict[str, Command] = {
    "compare": (comparison_options, run_comparison, "the comparison (what runs without a name)"),
    "kernel": (kernel.options, kernel.run, "the native sweeps' share of the peak of the core"),
    "mined": (mined.options, mined.run, "what skipping tiles that mining emptied saves"),
    "gpu": (gpu.options, gpu.run, "all that only a GPU can show: tests, time, memory, error, bits"),
    "retrieval": (retrieval.options, retrieval.run, "Recall@1 and MAP@R beside torch.mm; memory"),
    "cached": (cached.options, cached.run, "cached_step beside the plain step; time and memory"),
    "ring": (ring.options, ring.run, "several ranks: blocks that come past, or all rows gathered"),
    "large": (large.options, large.run, "time and memory once, at an N that no matrix fits"),
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (options, _, line) in COMMANDS.items():
        options(
            commands.add_parser(
                name, help=line, formatter_class=argparse.ArgumentDefaultsHelpFormatter
            )
        )
    named = argv and argv[0] in (*COMMANDS, "-h", "--help")
    chosen = parser.parse_args(argv if named else ["compare", *argv])
    COMMANDS[chosen.command][1](chosen, argv)


if __name__ == "__main__":
    main()
