"""Runs the CUDA sweeps on the CPU without Python: under every schedule, under sanitizers, mutated.

PYTHONPATH=tests python -m support.cuda_on_host.check [--all]

sweeps_test.cpp must find the kernels right, quietly, in every flavour of the build, and
self_test.cpp the machine. Then every one of mutants.py must be caught; --all asks every detector
about each.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from support.cuda_on_host import build, mutants

BUILD = build.ROOT / "build" / "cuda_on_host_check"
SCHEDULES = ("lockstep", "reversed", "first_warp", "last_warp", "random_thread", "random_warp")
WHOLE = ("lockstep", "random_thread")  # the others run fewer cases

# What CMakeLists.txt leaves out of the largest files, too, for the time that they take to compile.
ADDRESS = (
    "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    "-fno-sanitize=null,alignment,object-size,pointer-overflow",
    "-fno-sanitize-address-use-after-scope",
)  # fmt: skip
THREAD = ("-O1", "-g1", "-fsanitize=thread")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1",
}


class Flavour(NamedTuple):
    """One way to build: the kernels with `flags`, the machine and the test as `machine` does."""

    name: str
    flags: tuple[str, ...]
    machine: str

    @property
    def folder(self) -> Path:
        return BUILD / self.name


# The machine tells ThreadSanitizer itself what it does on behalf of a kernel.
PLAIN = Flavour("plain", (), "plain")
FLAVOURS = {f.name: f for f in (PLAIN, Flavour("address", ADDRESS, "address"),
                                Flavour("thread", THREAD, "plain"))}  # fmt: skip


def machine_objects(flavour: Flavour) -> list[str]:
    return [str(path) for path in sorted((BUILD / flavour.machine / "machine").glob("*.o"))]


def run(program: Path, *arguments: str) -> tuple[int, str]:
    """The exit status, and what it said on the way. Sanitizers want addresses that do not move."""
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    done = subprocess.run(
        [*fixed, str(program), *arguments],
        env=os.environ | OPTIONS,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def build_all() -> None:
    sources = [*build.machine(), build.HERE / "sweeps_test.cpp"]
    for flavour in FLAVOURS.values():
        folder = flavour.folder
        if flavour.machine == flavour.name:
            build.compile_each(sources, folder / "machine", flavour.flags)
        kernels = build.kernels()
        if flavour.flags:  # `small` has no case of it, so that less needs be compiled
            kernels = [path for path in kernels if "fine" not in path.name]
        made = build.compile_each(kernels, folder / "kernels", flavour.flags)
        flags = (*flavour.flags, *mutants.LENIENT)
        build.link(folder / "sweeps_test", made + machine_objects(flavour), flags)
    machine = [name for name in machine_objects(PLAIN) if "sweeps_test" not in name]
    test = build.compile_each([build.HERE / "self_test.cpp"], PLAIN.folder)
    build.link(PLAIN.folder / "self_test", test + machine, ())


def right_ones() -> bool:
    """The longest first, two at a time."""
    jobs: list[tuple[str, str, tuple[str, ...]]] = [("thread", "sweeps_test", ("few", ""))]
    jobs += [("plain", "sweeps_test", ("whole", "", schedule)) for schedule in WHOLE]
    jobs += [("plain", "sweeps_test", ("small", "", *[s for s in SCHEDULES if s not in WHOLE]))]
    jobs += [("address", "sweeps_test", ("small", "", "lockstep", "random_thread"))]
    jobs += [("plain", "self_test", ())]

    def right(job: tuple[str, str, tuple[str, ...]]) -> bool:
        flavour, program, arguments = job
        begin = time.monotonic()
        status, said = run(BUILD / flavour / program, *arguments)
        took = time.monotonic() - begin
        verdict = "ok" if status == 0 else f"FAILED (exit status {status})"
        print(f"{flavour} {program} {' '.join(arguments)}: {verdict}, {took:.0f} s", flush=True)
        if status != 0:
            print(said, flush=True)
        return status == 0

    with ThreadPoolExecutor(2) as pool:
        return all(list(pool.map(right, jobs)))


def processor_time() -> float:
    """Seconds, of everything that was run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="ask every detector about each mutant")
    parser.add_argument("--only", help="part of the names of mutants; nothing else is run")
    parser.add_argument("--built", action="store_true", help="take what was built before")
    given = parser.parse_args()
    begin = time.monotonic()
    if not given.built:
        shutil.rmtree(BUILD, ignore_errors=True)
        build_all()
    print(f"built: {time.monotonic() - begin:.0f} s, {processor_time():.0f} of a core", flush=True)
    if given.only is None:
        if not right_ones():
            return 1
        print(f"{processor_time():.0f} s of a core so far", flush=True)
    half = time.monotonic()
    survivors = mutants.survivors(FLAVOURS, machine_objects, run, given.only or "", given.all)
    took, all_took = time.monotonic() - half, time.monotonic() - begin
    print(f"mutants: {took:.0f} s; everything: {all_took:.0f} s, {processor_time():.0f} of a core")
    for name in survivors:
        print(f"SURVIVED: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
