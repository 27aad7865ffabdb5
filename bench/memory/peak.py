"""The peak of memory: by how much forward and backward raise it in a process of their own.

Each measurement has a process of its own, because a peak, once reached, hides every lower one. The
process first runs the same step at a tiny N, which loads the libraries and starts the threads; then
the kernel's record of the peak resident set is reset, and the growth over one forward and backward
at the N in question is what we report. The inputs exist before; the gradient is part of the growth.
Pages are counted per thread in batches, so that anything below a few MiB is noise. On CUDA the
allocator keeps the same record, exactly.

Who compiles, compiles for one N: it runs once at the N in question too, and the freed pages are
handed back, because the compiler's own memory is not what the loss costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.contestants import Contestant, contestants
from bench.problems import Setting, problem
from bench.separate_process import answer, in_separate_process

TINY = 48
MIB = 2**20
STATUS = Path("/proc/self/status")


def peak_mib(contestant: str, setting: Setting) -> float:
    return in_separate_process("bench.memory.peak", contestant, json.dumps(asdict(setting)))


def measure(contestant: str, setting: Setting) -> float:
    """MiB by which one step raises the peak of this process."""
    torch.set_num_threads(setting.threads)
    return growth(contestants()[contestant], setting)


def growth(entrant: Contestant, setting: Setting) -> float:
    entrant.step(problem(replace(setting, n=TINY)))()
    step = entrant.step(problem(setting))
    if setting.device == "cpu":
        keep_within_what_is_free()
    if entrant.compiles:
        step()
        hand_back_freed_pages()
    if setting.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    before = forget_peak()
    step()
    return max(0.0, peak_resident() - before)


def hand_back_freed_pages() -> None:
    """Where the C library can; where not, the step finds some of its memory already resident."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak() -> float:
    """Reset the record of the peak to what is resident now, where the system can, and read it."""
    # Where it stands, growth that stays below what loading the libraries took reads as zero.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_resident()


def peak_resident() -> float:
    """MiB. Not getrusage on Linux: its peak survives exec and may be that of the process before."""
    if STATUS.exists():
        return read_kib(STATUS)["VmHWM"] / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def keep_within_what_is_free() -> None:
    """Make an allocation beyond free memory an error here, before the system kills a bystander."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        kib = read_kib(meminfo)["MemAvailable"] + read_kib(STATUS)["VmData"]
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        free = kib * 1024 if hard == resource.RLIM_INFINITY else min(kib * 1024, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (free, hard))


def read_kib(table: Path) -> dict[str, int]:
    """The sizes among the `Name:  123 kB` lines of a table of the kernel."""
    fields = (line.split() for line in table.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in fields if words[-1] == "kB"}


if __name__ == "__main__":
    answer(lambda: measure(sys.argv[1], Setting(**json.loads(sys.argv[2]))))
