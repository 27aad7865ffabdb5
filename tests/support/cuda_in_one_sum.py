"""The CUDA kernels of a CPU as they would be without their second level of sums."""

import contextlib
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import devices
from support.cuda_on_host import build, mutants

# Edits of csrc/cuda/tile/mma.h: a tensor core's sum begins where the last one ended.
OF_TILES = next(m for m in mutants.MUTANTS if m.name == "one sum over all tiles")
OF_NUMBERS = OF_TILES._replace(
    old="multiply(of_step, a[0], b[0][2 * half], b[0][2 * half + 1]);",
    new="for (int e = 0; e < 4; ++e) {"
    "  of_step[e] = step == 0 && !S::streamed ? 0 : products[0][at][e]; products[0][at][e] = 0; }"
    "multiply_add(of_step, a[0], b[0][2 * half], b[0][2 * half + 1]);",
)


def edited_text() -> str:
    text = (build.ROOT / "csrc" / "cuda" / OF_TILES.file).read_text()
    for edit in (OF_TILES, OF_NUMBERS):
        assert text.count(edit.old) == 1, edit.old
        text = text.replace(edit.old, edit.new)
    return text


def in_one_sum() -> Path:
    """The module that sums over all numbers and all columns in one, beside the right one."""
    build.module()
    folder = build.ROOT / "build" / "cuda_in_one_sum"
    shutil.rmtree(folder, ignore_errors=True)
    csrc = shutil.copytree(build.ROOT / "csrc", folder / "csrc")
    (csrc / "cuda" / OF_TILES.file).write_text(edited_text())
    edited = [path for path in build.kernels(csrc) if path.name.endswith("_split.cu")]
    changed = build.compile_each(edited, folder / "objects", csrc=csrc)
    names = {path.name for path in edited}
    right = [path for path in build.OBJECTS.glob("*.o") if path.stem not in names]
    build.link(folder / "one_sum.so", [*changed, *map(str, right)], ("-shared",))
    return folder / "one_sum.so"


def use(path: Path) -> None:
    """Let these kernels be those of the engine, one block for all columns."""
    torch.set_num_threads(1)
    cuda_kernels.BACKEND = cuda_kernels.Backend.of(build.loaded(path), "cpu")
    mock.patch.object(devices, "processors", return_value=1).start()


@contextlib.contextmanager
def kernels(path: Path) -> Iterator[Callable[..., Any]]:
    """Calls in a process that has these kernels."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned, use, (path,)) as pool:
        yield lambda function, *args: pool.submit(_seeded, function, *args).result()


def _seeded(function: Callable[..., Any], *args: Any) -> Any:
    torch.manual_seed(0)
    return function(*args)
