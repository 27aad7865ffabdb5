"""`python -m pairops [--check] [--json]`: what is installed, which engine serves whom, and a
self-test; with --check, every kernel for GPUs beside dense torch instead."""

import argparse
import inspect
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeGuard

import torch

from . import __version__, losses
from .inspection import kernel_check
from .ops import engines
from .ops.bindings import extension
from .ops.pairs.pairs import Pairs
from .ops.terms.term import POS, lse

_VARIABLES = (
    "PAIROPS_ENGINE",
    "PAIROPS_CHECK",
    "PAIROPS_ISA",
    "PAIROPS_CUDA",
    "PAIROPS_HOPPER",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
)
_DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
_WIDTH = 100  # of a line, in characters
_TOLERANCE = 1e-5  # of float32 against float64, relative to the largest entry
_MOVED = 1e-6  # more than float32 rounds a similarity by


def _versions() -> dict[str, str | None]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "pairops": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda,
        "triton": installed("triton"),
    }


def _extension() -> dict[str, Any]:
    native = extension.native
    if native is None:
        return {"available": False, "reason": extension.MISSING}
    isas = ", ".join(native.isas())
    return {"available": True, **native.features(), "instruction sets here": isas}


def _engines_of(device: str) -> dict[str, str]:
    """For every dtype the engine that serves a small call, or why none does."""
    chosen = {}
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        if device == "cuda" and not torch.cuda.is_available():
            chosen[name] = "none: torch sees no CUDA device"
            continue
        x = torch.zeros(2, 2, device=device, dtype=dtype)
        pairs = Pairs.of(x, torch.zeros(2, dtype=torch.long, device=device))
        try:
            chosen[name] = engines.choose(pairs, [lse(POS, 1.0, 0.0)], [])
        except ValueError as error:
            chosen[name] = f"none: {error}"
    return chosen


def _engines() -> dict[str, str]:
    """For every engine "available", or why it declines a small call: engines for GPUs of a call on
    one, if there is one."""
    reasons = {}
    for name, engine in engines.ENGINES.items():
        device = "cuda" if torch.cuda.is_available() and engine.DEVICE == "cuda" else "cpu"
        labels = torch.zeros(2, dtype=torch.long, device=device)
        pairs = Pairs.of(torch.zeros(2, 2, device=device), labels)
        reasons[name] = engine.declines(pairs, [lse(POS, 1.0, 0.0)], [])
    return {name: "available" if why is None else why for name, why in reasons.items()}


def _self_test() -> dict[str, dict[str, float | str]]:
    """Per engine and loss: error of float32 value and gradient against dense in float64.

    Entries are left out that jump in float64 when embeddings move a little: a pair lies at the
    threshold of a margin there, or of the mining, and rounding decides on which side.

    Engines for GPUs are tested on one, if there is one. Where an engine declines a loss, why is
    said instead of an error.
    """
    torch.manual_seed(0)
    x, y, *directions = torch.randn(6, 200, 24).unbind()
    labels = torch.randint(0, 50, (200,))
    known = {
        "labels": labels, "y": y, "proxies": y[:50], "positives": y.unsqueeze(1),
        "values": labels / 8, "predictions": labels.roll(1) / 8, "queue": y.flip(0), "teacher": y,
        "gate": torch.sigmoid(y), "partner_labels": labels.roll(1), "scores": labels / 8,
        "teacher_x": y, "teacher_y": y.flip(0),
    }  # fmt: skip
    there = torch.cuda.is_available()
    device_of = {
        name: "cuda" if there and engine.DEVICE == "cuda" else "cpu"
        for name, engine in engines.ENGINES.items()
    }
    report: dict[str, dict[str, float | str]] = {}
    for name in losses.LOSSES:
        loss = getattr(losses, name)
        parameters = list(inspect.signature(loss).parameters.values())[1:]
        required = [p.name for p in parameters if p.default is p.empty and p.name in known]
        given = {name: known[name] for name in required}
        rows = slice(100 if name == "auc_loss" else None)  # whose time grows with N³

        def run(
            dtype: torch.dtype,
            device: str = "cpu",
            moved: torch.Tensor | float = 0.0,
            loss: Any = loss,
            given: Any = given,
            rows: slice = rows,
        ) -> Any:
            mine = (x.to(device, dtype) + moved)[rows].requires_grad_()
            others = {
                k: v.to(device, dtype if v.is_floating_point() else None)[rows]
                if isinstance(v, torch.Tensor)
                else v
                for k, v in given.items()
            }
            value = loss(mine, **others)
            found = value.detach(), torch.autograd.grad(value, mine)[0]
            return tuple([z.double().cpu() for z in found])

        with engines.engine("dense"):
            truth = run(torch.float64)
            moves = [step * z.double() for z in directions for step in (-_MOVED, _MOVED)]
            beside = [run(torch.float64, moved=moved) for moved in moves]
        jumps = [
            (torch.stack(around) - z).abs().amax(0) > _TOLERANCE * z.abs().max()
            for *around, z in zip(*beside, truth, strict=True)
        ]
        for engine in device_of:
            try:
                with engines.engine(engine):
                    found = run(torch.float32, device_of[engine])
            except ValueError as error:
                reason = str(error).partition("cannot serve this call: ")[2]
                report.setdefault(engine, {})[name] = f"declined: {reason or error}"
                continue
            errors = [
                torch.where(jump, 0, (a - b).abs()).max() / b.abs().max()
                for a, b, jump in zip(found, truth, jumps, strict=True)
            ]
            worst = float(torch.stack(errors).max())
            report.setdefault(engine, {})[name] = (
                worst if worst <= _TOLERANCE else f"FAILED {worst:.1e}"
            )
    return report


def _lines(report: Mapping[str, Any]) -> list[str]:
    """What a person wants to know, each in one line that a terminal shows whole."""
    versions, built = report["versions"], report["extension"]
    names = {"pairops": "pairops", "python": "Python", "torch": "torch", "triton": "Triton"}
    lines = [", ".join(f"{said} {versions[k]}" for k, said in names.items() if versions[k])]
    if built["available"]:
        cuda = "without CUDA kernels"
        if built["cuda"]:
            cuda = f"CUDA {built['cuda_toolkit']} for {built['cuda_architectures']}"
        lines.append(f"extension: {built['compiler']}, {built['instruction sets here']}; {cuda}")
    else:
        lines.append(f"extension: {built['reason']}")
    given = [f"{k}={v}" for k, v in report["environment"].items() if v is not None]
    lines += [f"environment: {', '.join(given)}"] * bool(given)
    for device, chosen in report["a tensor on this device takes"].items():
        dtypes: dict[str, list[str]] = {}
        for dtype, engine in chosen.items():
            dtypes.setdefault(engine, []).append(dtype)
        served = "; ".join([f"{engine} ({', '.join(those)})" for engine, those in dtypes.items()])
        alike = len(dtypes) == 1 and next(iter(dtypes)).startswith("none")
        lines.append(f"on {device}: {next(iter(dtypes)) if alike else served}")
    lines.append("engines, and their error in a self-test, float32 beside dense torch in float64:")
    for engine, found in report["self-test"].items():
        lines.append(f"  {engine:<10} {_outcome(report['engines'][engine], found)}")
    lines.append("--json says it loss by loss, with reasons; --check tries every kernel for GPUs")
    return [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..." for line in lines]


def _outcome(reason: str, found: Mapping[str, float | str]) -> str:
    """Why an engine serves nothing, or which losses it gets wrong, or how many right."""
    failed = [f"{k} {v.removeprefix('FAILED ')}" for k, v in found.items() if _is_failure(v)]
    if failed:
        return f"FAILED {len(failed)} of {len(found)} losses: {', '.join(failed)}"
    if reason != "available":
        return f"none: {reason}"
    errors = {k: v for k, v in found.items() if isinstance(v, float)}
    worst = max(errors, key=errors.__getitem__, default=None)
    said = f"{len(errors)} of {len(found)} losses"
    said += f", at most {errors[worst]:.0e} ({worst})" if worst else ""
    declined = len(found) - len(errors)
    return said + f"; {declined} declined" * bool(declined)


def _is_failure(value: float | str) -> TypeGuard[str]:
    return isinstance(value, str) and value.startswith("FAILED")


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 if the self-test or the check fails."""
    parser = argparse.ArgumentParser(prog="python -m pairops", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--check", action="store_true", help="check every kernel for GPUs in a process of its own"
    )
    given = parser.parse_args(arguments)
    as_json = given.json
    if given.check:
        return kernel_check.report(as_json)
    report = {
        "versions": _versions(),
        "extension": _extension(),
        "engines": _engines(),
        "a tensor on this device takes": {d: _engines_of(d) for d in ("cpu", "cuda")},
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
        "self-test": _self_test(),
    }
    print(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))
    return int(
        any(_is_failure(v) for found in report["self-test"].values() for v in found.values())
    )


if __name__ == "__main__":
    sys.exit(main())
