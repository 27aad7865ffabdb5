"""`python -m bench`: what pairops costs, beside what people use and what the machine can."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bench.cpu import call_path, comparison, kernel, large, mined, relations, retrieval, small
from bench.distributed import ring
from bench.gpu import entry as gpu
from bench.memory import cached

Command = tuple[
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.Namespace, Sequence[str]], None],
    str,
]

# `python -m bench NAME ...`: its options, what it runs, its line of help.
COMMANDS: dict[str, Command] = {
    "compare": (comparison.options, comparison.run, "the comparison (what runs without a name)"),
    "small": (small.options, small.run, "32 to 512 rows: time and Python calls of a step"),
    "kernel": (
        kernel.options,
        kernel.run,
        "the share of the peak that the engine cpu's sweeps reach, and where their time goes",
    ),
    "mined": (mined.options, mined.run, "what skipping tiles that mining emptied saves"),
    "relations": (relations.options, relations.run, "positives by a list or a width beside labels"),
    "gpu": (gpu.options, gpu.run, "all that only a GPU can show: tests, time, memory, error, bits"),
    "retrieval": (retrieval.options, retrieval.run, "Recall@1 and MAP@R beside torch.mm; memory"),
    "cached": (cached.options, cached.run, "cached_step beside the plain step; time and memory"),
    "ring": (ring.options, ring.run, "several ranks: blocks that come past, or all rows gathered"),
    "large": (large.options, large.run, "time and memory once, at an N that no matrix fits"),
    "path": (call_path.options, call_path.run, "files and Python calls of one step, counted"),
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
