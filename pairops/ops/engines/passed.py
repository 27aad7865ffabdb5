"""What is known of engines on GPUs: which of them passed a check, by GPU, driver, torch and build.

`passed.json` beside this file holds results of GPUs that were tried before a release, and a file in
the user's cache folder those of `python -m pairops --check` here. Both are lists of entries, one
for each GPU.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pairops.ops.bindings import extension
from pairops.ops.bindings.devices import capability

_HERE = Path(__file__).parent
SHIPPED = _HERE / "passed.json"


def cache_file() -> Path:
    """Return the file of this user, which need not exist."""
    given = os.environ.get("XDG_CACHE_HOME")
    folder = Path(given) if given and os.path.isabs(given) else Path.home() / ".cache"
    return folder / "pairops" / "passed.json"


def identity(device: torch.device) -> dict[str, str]:
    """Return what the results of kernels may depend on, besides the calls."""
    here = device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name(device) if here else device.type,
        "capability": ".".join(map(str, capability(device))) if here else "",
        "driver": driver() if here else "",
        "torch": torch.__version__,
        "build": build(),
    }


@functools.cache
def driver() -> str:
    """Return the version of NVIDIA's driver, as "580.95.05"; "" if nothing tells it."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", text)
        if found:
            return found[1]
    return ""


@functools.cache
def build() -> str:
    """Return a digest of the kernels: the Python that writes or launches them, the features of the
    extension, with the digest of its CUDA sources, and whether Hopper's own sweeps serve."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*_HERE.glob("cuda/**/*.py"), *_HERE.glob("triton/**/*.py")]):
        digest.update(path.read_bytes())
    digest.update(os.environ.get("PAIROPS_HOPPER", "0").encode())
    if extension.native is not None:
        features = extension.native.features()
        named = ("version", "cuda_toolkit", "cuda_architectures", "cuda_sources")
        digest.update(json.dumps([features.get(name) for name in named]).encode())
    return digest.hexdigest()


def of(device: torch.device) -> frozenset[str]:
    """Return the engines that passed on such a GPU.

    An entry of the package counts for the capability, the first number of the driver, and the
    build; one of this user for all of `identity`.
    """
    here = identity(device)
    shipped, mine = _entries(SHIPPED), _entries(cache_file())
    found: set[str] = set()
    for entry in shipped:
        named = [
            (z.get("capability"), _major(z.get("driver")), z.get("build")) for z in (entry, here)
        ]
        if named[0] == named[1] and named[0][1]:
            found.update(entry["passed"])
    for entry in mine:
        if all(entry.get(name) == value for name, value in here.items()):
            found.update(entry["passed"])
    return frozenset(found)


def remember(here: Mapping[str, str], engines: Iterable[str]) -> Path:
    """Write which engines passed into the user's file, in place of what it said of this GPU.

    here: its `identity`. Another process finds the file as it was or as it becomes.
    """
    path = cache_file()
    others = [e for e in _entries(path) if any(e.get(k) != value for k, value in here.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump([*others, {**here, "passed": sorted(engines)}], file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file; none if it is not there, or was written by somebody else."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(entries, list):
        return []
    return [e for e in entries if isinstance(e, dict) and isinstance(e.get("passed"), list)]


def _major(version: str | None) -> str:
    return (version or "").partition(".")[0]
