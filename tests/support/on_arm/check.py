"""Compiles the engine cpu without Python for ARM, and runs it beside plain loops under qemu.

`make aarch64`; on an ARM machine its own compiler is taken, and nothing emulates. Without a cross
compiler or without qemu it says what is missing, and checks nothing.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build" / "on_arm"
# Those of CMakeLists.txt for the files of kernels.
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-math-errno"]
FLAGS += ["-ffp-contract=fast", "-Wno-psabi", "-I", str(ROOT / "csrc")]


def tools() -> tuple[str, list[str]]:
    """The compiler, and what the program is started by; exit where there is none."""
    if platform.machine() == "aarch64":
        return os.environ.get("CXX", "g++"), []
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not compiler or not emulator:
        missing = "qemu-aarch64" if compiler else "aarch64-linux-gnu-g++"
        print(
            f"aarch64: nothing was checked, there is no {missing}; on Debian it comes by "
            "apt-get install g++-aarch64-linux-gnu qemu-user"
        )
        sys.exit(0)
    return compiler, [emulator]


def main() -> int:
    compiler, start = tools()
    sources = [*sorted((ROOT / "csrc/cpu").glob("*.cpp")), HERE / "sweeps.cpp"]
    sources.append(ROOT / "csrc/cpu/simd/isa_baseline.cpp")
    BUILD.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> str:
        made = str(BUILD / f"{source.stem}.o")
        subprocess.run([compiler, *FLAGS, "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    # Static: an emulator needs no libraries of the other processor then.
    program = str(BUILD / "sweeps")
    subprocess.run([compiler, "-static", *objects, "-pthread", "-o", program], check=True)
    return subprocess.run([*start, program]).returncode


if __name__ == "__main__":
    sys.exit(main())
