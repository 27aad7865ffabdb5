"""What `bench gpu` does, one task after the other: every part, or the first eight minutes."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from bench.gpu import lease

MINUTES = 8.0  # of a first run, if the lease has as many
PATIENCE = 40.0  # seconds; a crash or a hang costs one row, and no more than that


@dataclass(frozen=True)
class Task:
    """A part, with some options of its own, in a process of its own."""

    part: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = inf  # after that it begins nothing new
    environment: Mapping[str, str] = field(default_factory=dict)


class Sizes(NamedTuple):
    """Of a first run: numbers of rows, by what is measured at them, and numbers of dimensions."""

    sums: tuple[int, ...]
    large: tuple[int, ...]
    middle: tuple[int, ...]
    small: tuple[int, ...]
    d: tuple[int, ...]
    repeats: int


ON_GPU = Sizes(
    (1024, 4096, 16_384, 65_536), (16_384, 65_536), (16_384,), (512,), (128, 256, 512), 10
)  # fmt: skip
TINY = Sizes((24, 100), (16, 24), (24,), (24,), (16, 48), 2)


def everything(options: argparse.Namespace, whole: Collection[str]) -> list[Task]:
    """Each part, and on Hopper once more with the CUDA engine alone and its sweeps for 9.0.

    whole: the parts that see to Hopper themselves.
    """
    tasks = []
    for part in options.parts:
        tasks.append(Task(part))
        differs = "cuda" in options.who and part not in {*whole, "rate", "long_sums", "shapes"}
        if differs and lease.with_hopper(options.device):
            tasks.append(Task(part, {"who": ["cuda"]}, environment=lease.HOPPER))
    return tasks


def first_run(device: str) -> list[Task]:
    """In order of what it would be worst not to know. On the CPU the same, at tiny sizes."""
    sizes, here = (TINY, {"TRITON_INTERPRET": "1"}) if device == "cpu" else (ON_GPU, {})
    hopper = device == "cpu" or lease.with_hopper(device)

    def task(part: str, seconds: float, **changes: Any) -> Task:
        return Task(part, {"repeats": sizes.repeats, "alone": True, **changes}, seconds, here)

    def and_on_hopper(task: Task) -> list[Task]:
        alone = {**task.changes, "who": ["cuda"]}
        again = Task(task.part, alone, task.seconds / 2, here | lease.HOPPER)
        return [task, again] if hopper else [task]

    ours = ["cuda", "triton", "chunked"]
    rivals = ["memeff", "siglip_kernel", "linear_cross_entropy", "hand", *ours]
    labelled, paired = ["supcon"], ["info_nce", "siglip"]
    short, wide = ["bfloat16"], ["float32"]
    some, first, last = [*ours[:2], "blockwise"], sizes.d[:1], sizes.d[-1:]
    rate = task("rate", 20, loss=labelled, dtype=short + wide, n=[2], d=[1], who=["hand"])
    sums = task("long_sums", 60, loss=labelled, dtype=wide, n=sizes.sums, d=first, who=some)
    speed = task("speed", 110, loss=labelled, dtype=short, n=sizes.large, d=sizes.d, who=ours)
    costs = task("costs", 50, loss=["ms"], dtype=short, n=sizes.small, d=first, who=[*ours, "hand"])
    beside = task("speed", 60, loss=paired, dtype=short, n=sizes.middle, d=last, who=rivals)
    return [
        Task("check", seconds=100),
        Task("sanitizer", seconds=90),
        sums,
        rate,
        *and_on_hopper(speed),
        *and_on_hopper(costs),
        *and_on_hopper(beside),
    ]
