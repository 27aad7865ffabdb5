"""`python -m bench`: what pairops costs, beside one torch.mm and what people use today."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bench.comparison import compare, work
from bench.contestants import YARDSTICK, contestants
from bench.guard import TOLERANCE
from bench.problems import Setting, losses
from bench.report import blockwise_to_dense, table, write
from bench.stamp import stamp

RESULTS = Path(__file__).parent / "results"


def at_least(least: int) -> Callable[[str], int]:
    """An argument type; argparse turns its ValueError into a message that quotes the argument."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return whole_number


def comparison_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", nargs="+", choices=losses(), default=["ms"])
    sizes = [256, 512, 1024, 2048, 4096]
    add("--n", nargs="+", type=at_least(2), default=sizes, help="batch sizes")
    add("--d", type=at_least(1), default=128, help="dimension of the embedding")
    add("--per-class", type=at_least(1), default=4, help="embeddings of each class")
    add("--dtype", choices=list(TOLERANCE), default="float32")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--repeats", type=at_least(2), default=15, help="timed calls of each contestant at each N")
    add("--contestants", nargs="+", choices=list(contestants()), default=list(contestants()))
    add("--no-compile", action="store_true", help="without torch.compile: saves a minute per N")
    add("--output", type=Path, default=RESULTS, help="folder for LOSS-DEVICE.json and .png")


def run_comparison(options: argparse.Namespace, argv: Sequence[str]) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    keys = [key for key in contestants() if key in {YARDSTICK, *options.contestants}]
    if options.no_compile and "compiled" in keys:
        keys.remove("compiled")
    conditions = stamp(list(argv), options.device) | {
        name: getattr(options, name) for name in ("d", "per_class", "dtype", "device", "repeats")
    }
    conditions["tolerance_of_loss"], conditions["tolerance_of_gradient"] = TOLERANCE[options.dtype]
    for loss in options.loss:
        settings = [
            Setting(
                loss,
                n,
                options.d,
                options.per_class,
                options.dtype,
                options.device,
                options.threads,
            )
            for n in sorted(options.n)
        ]
        rows = []
        total = work(settings, keys, options.repeats)
        with tqdm(total=total, desc=loss, leave=False, disable=None) as bar:
            for setting in settings:
                rows += compare(setting, keys, options.repeats, bar)
        print(f"\n{loss}_loss, forward + backward: D={options.d}, {options.dtype}, ", end="")
        print(f"{conditions['gpu'] or conditions['cpu']}, threads: {options.threads}, ", end="")
        print(f"load {conditions['load']}, medians of {options.repeats} taken in turns\n")
        print(table(rows))
        print(f"\n{blockwise_to_dense(rows)}")
        for path in write(options.output, f"{loss}-{options.device}", rows, conditions):
            print(f"written: {path}")


Command = tuple[
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.Namespace, Sequence[str]], None],
    str,
]

# `python -m bench NAME ...`: its options, what it runs, its line of help.
COMMANDS: dict[str, Command] = {
    "compare": (comparison_options, run_comparison, "the comparison (what runs without a name)"),
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
