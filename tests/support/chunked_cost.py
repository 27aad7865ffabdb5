"""Prints what the engine `chunked` launches and moves, forward and backward, by arithmetic.

PYTHONPATH=tests python -m support.chunked_cost [--n 65536] [--d 512]

bfloat16, a log-sum-exp for each row and, of two sets, for each column; one set, and two of which
both get a gradient. s and weights of a chunk stay in an L2 cache, and so do sums and embeddings of
the outer set while its chunks follow one another. What begins and ends a call is left out, some
dozens of launches. Nothing was measured.
"""

import argparse
from typing import NamedTuple

from pairops.ops.engines.triton import chunks, tile_configs
from pairops.ops.engines.triton.chunks import Extent

GB = 1e9


class Scheme(NamedTuple):
    """How pairs are cut into chunks, and what each of them takes."""

    extent: Extent | None  # None: that of `chunks.extent`
    largest: bool = False  # the largest weight of each chunk is looked for first
    in_place: bool = True  # products are added where sums are


SCHEMES = {"all columns": Scheme(None, True, False), "chunks": Scheme(None)}
LARGEST = 9  # launches: the kernel, and what makes a unit of what it found
SUMS = {True: 8, False: 24}  # bytes for each number: a product, its unit and the sum apart, or none


class Cost(NamedTuple):
    extent: Extent
    launches: int
    pairs: int  # bytes of s and weights, which stay in a cache
    embeddings: int  # bytes of sorted copies
    sums: int  # bytes of gradients in float32


def cost(n: int, m: int, d: int, scheme: Scheme, wanted: tuple[bool, bool] = (True, True)) -> Cost:
    """m: 0 for one set, of which all rows have a gradient."""
    two, m = m > 0, m or n
    if not two:
        wanted = True, False
    extent = scheme.extent or chunks.extent(n, m, PRECISION, False)
    if scheme.largest:
        rows = chunks.ROOM // (8 * m)
        extent = Extent(rows // 128 * 128 if rows >= 128 else max(16, rows), m)
    outer, inner = -(-n // extent.rows), -(-m // extent.cols)
    gradients = sum(wanted)
    of_product = 1 if scheme.in_place else 3
    each = 2 * (1 + 1) + two + gradients * of_product + scheme.largest * LARGEST
    once, again = (n, m) if wanted[0] else (m, n)
    times = outer if wanted[0] else inner
    per_number = SUMS[scheme.in_place]
    return Cost(
        extent,
        outer * inner * each,
        n * m * (4 + 4 + two * 4 + 4 + 4 + scheme.largest * 4 + 2 + 2 * gradients),
        2 * d * (once + times * again) * (2 if scheme.in_place else 3),
        d * per_number * (once + (times * again if all(wanted) else 0)),
    )


PRECISION = tile_configs.precision(tile_configs.torch.bfloat16, "highest")


def table(n: int, d: int) -> str:
    lines = [
        "| sets | chunks of | chunks | launches | s and weights, in a cache | embeddings | sums |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for sets, m in (("one", 0), ("two", n)):
        for name, scheme in SCHEMES.items():
            of = cost(n, m, d, scheme)
            rows, cols = of.extent
            count = -(-n // rows) * -(-n // cols)
            moved = " | ".join(f"{z / GB:,.1f} GB" for z in of[2:])
            lines.append(
                f"| {sets} | {rows:,} × {cols:,}, {name} | {count:,} | {of.launches:,} | {moved} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=65_536)
    parser.add_argument("--d", type=int, default=512)
    print(table(**vars(parser.parse_args())))
