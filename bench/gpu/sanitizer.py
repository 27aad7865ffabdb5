"""The CUDA engine under compute-sanitizer, at sizes that fill no tile; `python -m` it runs the
steps that the sanitizer is to watch."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import torch

from bench.contestants import contestants
from bench.gpu import lease
from bench.gpu.lease import Clock, Row
from bench.problems import Setting, problem

TOOLS = ("memcheck", "racecheck")
LOSSES = ("ms", "supcon", "siglip")
# What says most stands first: a short lease may end before the rest.
SIZES = ((300, 128), (300, 300), (300, 48), (100, 128), (100, 300), (100, 48))
DTYPES = ("bfloat16", "float32")
DONE = "all steps done"
STEP = "step"  # how a line begins that tells one
HEAD = "COMPUTE-SANITIZER"  # what it says in any case
WORDS = {True: "clean", False: "NOT CLEAN", None: "no verdict in its time"}
CLEAN = ("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards")

# Every tensor is then an allocation of its own, behind which an access is out of bounds.
ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def sanitizer(options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """What each tool says of both kinds of sweeps."""
    found = path()
    if found is None:
        yield {"failure": "no compute-sanitizer, neither on PATH nor beside nvcc"}
        return
    hopper = lease.with_hopper(options.device)
    kinds = list(product(TOOLS, ({}, lease.HOPPER) if hopper else ({},)))
    watched = [sys.executable, "-m", "bench.gpu.sanitizer", options.device]
    runs = [
        (
            [found, "--tool", tool, "--error-exitcode", "1", *watched],
            ALLOCATIONS | lease.UNCHECKED | environment,
        )
        for tool, environment in kinds
    ]
    for number, code, output in lease.finish_together(runs, clock.left()):
        tool, environment = kinds[number]
        row = verdict(tool, environment, code, output)
        print(tool, environment, WORDS[row["clean"]], row["summary"])
        print(*row["complaints"][:12], row["last"], sep="\n", flush=True)
        yield row


def verdict(tool: str, environment: Mapping[str, str], code: int | None, output: str) -> Row:
    """code: None if it was ended; it is not known to be clean then. A warning is a complaint, but
    no error.

    Where the machine refuses the tool, as some do, that is a failure and says nothing of kernels.
    """
    lines = output.splitlines()
    said = [line for line in lines if line.startswith("=========")]
    summary = [line for line in said if "SUMMARY" in line]
    whole = code == 0 and DONE in lines
    clean: bool | None = whole and any(words in line for line in summary for words in CLEAN)
    if code is None and all(HEAD in line for line in said):
        clean = None
    refused = next((line for line in said if "not supported" in line.lower()), None)
    failure = {"failure": f"refused here: {refused.strip('= ')}"} if refused else {}
    return {
        "tool": tool,
        "environment": dict(environment),
        "returncode": code,
        "clean": clean,
        "steps_begun": sum(line.startswith(STEP) for line in lines),
        "summary": summary,
        "complaints": said[:60],
        "last": next((line for line in reversed(lines) if line not in said), ""),
        **failure,
    }


def path() -> str | None:
    """Of the tool: on PATH, or where a toolkit keeps it."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        beside = Path(nvcc).resolve().parent
        folders += [beside, beside.parent / "compute-sanitizer"]
    folders += [folder.parent / "compute-sanitizer" for folder in folders]
    searched = [os.environ.get("PATH", os.defpath), *map(str, folders)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(searched))


def steps(device: str) -> None:
    for (n, d), dtype, loss in product(SIZES, DTYPES, LOSSES):
        print(STEP, loss, dtype, f"N={n} D={d}", flush=True)
        contestants()["cuda"].step(problem(Setting(loss, n, d, 4, dtype, device)))()
        if device == "cuda":
            torch.cuda.synchronize()
    print(DONE, flush=True)


if __name__ == "__main__":
    steps(sys.argv[1])
