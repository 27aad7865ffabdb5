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
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from support.cuda_on_host import build, mutants

BUILD = build.ROOT / "build" / "cuda_on_host_check"
TEST = build.HERE / "sweeps_test.cpp"
SCHEDULES = ("lockstep", "reversed", "first_warp", "last_warp", "random_thread", "random_warp")
WHOLE = "lockstep"  # the others run fewer cases

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
    """One way to build: the kernels with `flags`, the machine and the test as `machine` does.

    without: kernels that no case of its runs calls, so that less needs be compiled.
    """

    name: str
    flags: tuple[str, ...]
    machine: str
    without: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return BUILD / self.name

    @property
    def objects(self) -> Path:
        """Of the kernels and the machine; the Python module is built as the plain ones are."""
        return self.folder / "objects" if self.flags else build.OBJECTS


# The machine tells ThreadSanitizer itself what it does on behalf of a kernel.
PLAIN = Flavour("plain", (), "plain")
NOT_SMALL = ("Plain128", "Split128", "Hopper128")
NOT_FEW = (*NOT_SMALL, "Plain256", "SplitAny", "Hopper256")
FLAVOURS = {f.name: f for f in (PLAIN, Flavour("address", ADDRESS, "address", NOT_SMALL),
                                Flavour("thread", THREAD, "plain", NOT_FEW))}  # fmt: skip


def objects(flavour: Flavour, sources: list[Path]) -> list[str]:
    return [str(flavour.objects / f"{path.name}.o") for path in sources]


def machine_objects(flavour: Flavour) -> list[str]:
    """The machine and the test, as this flavour of the kernels wants them."""
    built = FLAVOURS[flavour.machine]
    return [*objects(built, build.machine()), str(built.folder / f"{TEST.name}.o")]


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


def kernels_of(flavour: Flavour) -> list[Path]:
    """Copies without those that it does not call. What is called and missing is a crash."""
    flavour.folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for path in build.kernels():
        if "fine" in path.name:  # none of its cases is
            continue
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not any(f"<{name}" in line for name in flavour.without)]
        copies.append(flavour.folder / path.name)
        copies[-1].write_text("".join(kept))
    return copies


def build_all() -> None:
    """The module is compiled apart: the tests may have it already."""
    build.module()
    wanted: list[build.Compiled] = []
    kernels = {name: build.kernels() for name in FLAVOURS}
    for flavour in FLAVOURS.values():
        own = flavour.machine == flavour.name
        if flavour.flags:
            kernels[flavour.name] = kernels_of(flavour)
            sources = [*kernels[flavour.name], *(build.machine() if own else [])]
            wanted.append(build.Compiled(sources, flavour.objects, flavour.flags))
        if own:
            wanted.append(build.Compiled([TEST], flavour.folder, flavour.flags))
    self_test = build.Compiled([build.HERE / "self_test.cpp"], PLAIN.folder)
    build.compile_all(*wanted, self_test)
    for flavour in FLAVOURS.values():
        flags = (*flavour.flags, *mutants.LENIENT)
        made = objects(flavour, kernels[flavour.name]) + machine_objects(flavour)
        build.link(flavour.folder / "sweeps_test", made, flags)
    made = self_test.objects() + objects(PLAIN, build.machine())
    build.link(PLAIN.folder / "self_test", made, ())


def right_ones(pool: Executor) -> list[Future[bool]]:
    """The longest first."""
    jobs: list[tuple[str, str, tuple[str, ...]]] = [("thread", "sweeps_test", ("few", ""))]
    jobs += [("address", "sweeps_test", ("small", "", WHOLE))]  # no address depends on the order
    jobs += [("plain", "sweeps_test", ("whole", "", WHOLE))]
    jobs += [("plain", "sweeps_test", ("small", "", *[s for s in SCHEDULES if s != WHOLE]))]
    jobs += [("plain", "self_test", ())]

    def right(flavour: str, program: str, arguments: tuple[str, ...]) -> bool:
        begin = time.monotonic()
        status, said = run(BUILD / flavour / program, *arguments)
        took = time.monotonic() - begin
        verdict = "ok" if status == 0 else f"FAILED (exit status {status})"
        print(f"{flavour} {program} {' '.join(arguments)}: {verdict}, {took:.0f} s", flush=True)
        if status != 0:
            print(said, flush=True)
        return status == 0

    return [pool.submit(right, *job) for job in jobs]


def processor_time() -> float:
    """Seconds, of everything that was run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--all", action="store_true", help="ask every detector about each mutant, and the rare ones"
    )
    parser.add_argument("--only", help="part of the names of mutants; nothing else is run")
    parser.add_argument("--built", action="store_true", help="take what was built before")
    given = parser.parse_args()
    begin = time.monotonic()
    if not given.built:
        shutil.rmtree(BUILD, ignore_errors=True)
        build_all()
    print(f"built: {time.monotonic() - begin:.0f} s, {processor_time():.0f} of a core", flush=True)
    with ThreadPoolExecutor(2) as pool:
        right = right_ones(pool) if given.only is None else []
        asked = given.only or ""
        survivors = mutants.survivors(FLAVOURS, machine_objects, run, pool, asked, given.all)
    took = time.monotonic() - begin
    print(f"everything: {took:.0f} s, {processor_time():.0f} of a core")
    for name in survivors:
        print(f"SURVIVED: {name}")
    return 1 if survivors or not all(job.result() for job in right) else 0


if __name__ == "__main__":
    sys.exit(main())
