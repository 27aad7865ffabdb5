"""The memory of a loss: by how much forward and backward raise the peak of a process."""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch
from objective import NAMES, Objective

STATUS = Path("/proc/self/status")
WIDTH = 64
CLASSES = 10


def forward_backward(objective: Objective, rows: int) -> None:
    sets = 2 if objective.paired else 1
    embedding = torch.randn(sets * rows, WIDTH, requires_grad=True)
    objective(embedding, torch.randint(CLASSES, (rows,))).backward()


def peak_mib() -> float:
    """The highest resident memory that this process has had since it began."""
    if STATUS.exists():
        # Not getrusage here: on Linux its peak starts at that of the parent process.
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def growth_here(name: str, rows: int) -> float:
    """Peak resident MiB that one loss on `rows` rows adds, inputs and gradients included.

    Right only in a fresh process: the peak is a high-water mark, below which nothing is seen. A
    call on a few rows goes first, so that code which loads late is not counted.
    """
    objective = Objective(name)
    forward_backward(objective, rows=64)
    before = peak_mib()
    forward_backward(objective, rows)
    return peak_mib() - before


def growth(name: str, rows: int) -> float:
    """`growth_here`, in a fresh process."""
    command = [sys.executable, __file__, "--loss", name, "--rows", str(rows), "--bare"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", choices=NAMES, default="ms")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--bare", action="store_true", help="print the number alone")
    options = parser.parse_args()
    mib = growth_here(options.loss, options.rows)
    print(mib if options.bare else f"{options.loss}, {options.rows:,} rows: {mib:.0f} MiB")


if __name__ == "__main__":
    main()
