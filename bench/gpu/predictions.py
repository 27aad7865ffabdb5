"""What is expected of a GPU, beside what it shows. **Nothing here was measured**: it comes from the
kernels' machine code, counted, and a model of an H200's rates (docs/engines/cuda.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import columns

Range = tuple[float, float]  # from, to

# Share of torch.mm's rate, of a loss with one log-sum-exp over one set in 16 bits, N in the ten
# thousands, by who and D: the column "expected" of docs/engines/cuda.md, and chunked's arithmetic.
SHARE_OF_MM = {
    ("cuda", 128): 0.35,
    ("cuda", 256): 0.33,
    ("cuda, hopper", 128): 0.61,
    ("cuda, hopper", 256): 0.86,
    ("cuda, hopper", 512): 0.73,
    ("triton", 128): 0.67,
    ("triton", 256): 0.71,
    ("triton", 512): 0.35,
    ("chunked", 512): 0.50,
}

TFLOPS_OF_MM = {"bfloat16": 790.0}

# The gradient's error in float32 where the products of each tile are summed apart and then added to
# nearest, as it was emulated, by N. Beside it, for the largest N, what comes of one sum in a tensor
# core, which truncates at each step: in proportion to N, and no less than the first.
ERROR = {1024: 3.9e-7, 4096: 3.8e-7, 16_384: 4.3e-7, 65_536: 4.9e-7}
ERROR_OF_ONE_SUM: tuple[int, Range] = (65_536, (5e-5, 2e-4))
MOST_ERROR = {"high": 1e-5}  # what numerics.md promises of the level

# Forward and backward of ms_loss at N = 512: launches, and microseconds.
COSTS: dict[str, dict[str, Range]] = {
    "cuda": {"kernels": (10, 30), "host_us": (250, 500), "graph_us": (40, 50)},
    "hand": {"kernels": (60, 100), "host_us": (400, 800)},
}


def beside(part: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is added to a row of a part: predictions by the names of what they stand beside."""
    predicted: dict[str, Any] = {}
    who, n, d = row.get("who"), row.get("n"), row.get("d")
    if part == "speed" and row.get("loss") == "supcon" and (who, d) in SHARE_OF_MM:
        predicted["graph_share_of_mm"] = SHARE_OF_MM[who, d]
    elif part == "rate" and row.get("dtype") in TFLOPS_OF_MM:
        predicted["mm_tflops"] = TFLOPS_OF_MM[row["dtype"]]
    elif part == "long_sums" and n in ERROR:
        predicted["gradient_error"] = MOST_ERROR.get(str(row.get("level")), ERROR[n])
        if who == "cuda" and row.get("level") == "highest":
            largest, range_ = ERROR_OF_ONE_SUM
            predicted["gradient_error_of_one_sum"] = [
                max(ERROR[n], e * n / largest) for e in range_
            ]
    elif part == "costs" and row.get("loss") == "ms":
        predicted |= {name: list(range_) for name, range_ in COSTS.get(str(who), {}).items()}
    return {"predicted": predicted} if predicted else {}


SHOWN = {
    "check": ("passed", "counts"),
    "sanitizer": ("clean", "steps_begun"),
    "long_sums": ("gradient_error",),
    "rate": ("mm_tflops",),
    "speed": ("graph_share_of_mm", "share_of_mm", "ms"),
    "costs": ("kernels", "host_us", "graph_us", "graph_host_us", "ms"),
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each row what is most of it, beside what was predicted; a failure in its own words."""
    lines = []
    for row in rows:
        where = [f"{name.upper()}={row[name]}" for name in ("n", "d") if name in row]
        what = [str(row[k]) for k in ("who", "tool", "loss", "level", "dtype") if k in row]
        shown = [name for name in SHOWN.get(row["part"], ()) if row.get(name) is not None]
        if "failure" in row:
            measured, predicted = row["failure"][:60], ""
        else:
            measured = ", ".join(f"{name} {brief(row[name])}" for name in shown)
            predicted = ", ".join(f"{k} {brief(v)}" for k, v in row.get("predicted", {}).items())
        lines.append((row["part"], " ".join(what), " ".join(where), measured, predicted))
    return columns(("part", "of", "at", "measured", "predicted"), lines)


def brief(value: object) -> str:
    if isinstance(value, list):
        return "-".join(map(brief, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
