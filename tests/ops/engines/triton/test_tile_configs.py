"""Every row of the table of configurations, compiled ahead of time: it fits its GPU and spills
nothing. Needs no GPU; `triton_resources.py` of tests/support runs, in processes of its own."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from pairops.ops.engines.triton import engine
from pairops.ops.engines.triton.tile_configs import TABLE
from support.exhaustive import exhaustive
from support.on_cpu import device as device
from support.project import SUPPORT

pytestmark = [
    pytest.mark.slow,
    exhaustive,
    pytest.mark.xdist_group("compiled"),  # in one process, which runs the jobs
    pytest.mark.skipif(engine.MISSING is not None, reason="needs triton"),
]

# Bytes that a block may have, of the least of the GPUs that take the row: 80 also serves 8.6, 8.9
# and 12.0.
SHARED = {80: 101_376, 90: 232_448, 100: 232_448}
SCRIPT = SUPPORT / "triton_resources.py"


class Job(NamedTuple):
    capability: int
    dtype: str
    d: int
    loss: str
    level: str = "highest"

    @property
    def name(self) -> str:
        return "-".join([self.dtype, str(self.d), self.loss, self.level])


def named(job: Job) -> str:
    return f"sm_{job.capability}-{job.name}"


def rows() -> list[Job]:
    """The mined loss on every row, with weights in one part and in two."""
    dtypes = {2: "bfloat16", 4: "float32"}
    return [
        Job(capability, dtypes[width], 1024 if row.most == math.inf else int(row.most), "ms_loss")
        for (capability, width), table in TABLE.items()
        for row in table
    ]


JOBS = [
    *rows(),
    Job(90, "float16", 128, "siglip_loss"),
    # Two terms of positives beside that of negatives.
    Job(90, "bfloat16", 128, "supcon_loss"),
    Job(90, "bfloat16", 256, "supcon_loss"),
    Job(90, "bfloat16", 1024, "supcon_loss"),
    Job(90, "float32", 128, "supcon_loss", "high"),
    Job(90, "float32", 128, "supcon_loss"),
    # A reference per row and one per column, besides both log-sum-exps.
    Job(100, "bfloat16", 128, "info_nce_loss"),
    # Positives by list, whose flags are held besides all that.
    Job(80, "bfloat16", 128, "ms_loss+list"),
    Job(80, "float32", 1024, "ms_loss+list"),
    Job(90, "bfloat16", 64, "ms_loss+list"),
    Job(90, "bfloat16", 256, "ms_loss+list"),
    Job(100, "bfloat16", 128, "ms_loss+list"),
]


# The kernels of chunks: one set in 16 bits, of which a weight has no bound, and float32.
IN_CHUNKS = [
    Job(90, "bfloat16", 512, "circle_loss+chunks"),
    Job(80, "float32", 256, "supcon_loss+chunks"),
]


@pytest.fixture(scope="module")
def compiled() -> Any:
    """A process for each GPU, which begins with much that they share; two run at a time."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

    def run(capability: int) -> list[dict[str, Any]]:
        names = [job.name for job in (*JOBS, *IN_CHUNKS) if job.capability == capability]
        done = subprocess.run(
            [sys.executable, SCRIPT, str(capability), *names],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        gpus = {capability: pool.submit(run, capability) for capability in SHARED}
        yield lambda job: [k for k in gpus[job.capability].result() if k["job"] == job.name]
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("job", [job for job in JOBS if job.dtype == "float32"], ids=named)
def test_no_float32_product_is_fused_into_a_sum(job: Job, compiled: Any) -> None:
    """Where something stands between in one pass or one kind of tile alone, its rounding shows."""
    assert all(k["fusible"] == 0 for k in compiled(job))


@pytest.mark.parametrize("job", JOBS, ids=named)
def test_only_weights_of_11_bits_are_summed_over_tiles_by_products(job: Job, compiled: Any) -> None:
    """Where products truncate, that adds up over a row of tiles. bfloat16 has both kinds."""
    carried = {k["carried"] > 0 for k in compiled(job) if k["kernel"] == "backward"}
    assert carried == ({True, False} if job.dtype == "bfloat16" else {False})


@pytest.mark.parametrize("job", JOBS, ids=named)
def test_a_row_of_the_table_fits_and_spills_nothing(job: Job, compiled: Any) -> None:
    kernels = compiled(job)
    assert {"forward", "finalize_states", "backward", "normalize_backward"} <= {
        k["kernel"] for k in kernels
    }
    for kernel in kernels:
        assert kernel["shared"] <= SHARED[job.capability], kernel
        assert kernel["spilled"] == 0, kernel
        # 16-bit products run on the tensor cores, exact float32 ones cannot.
        if kernel["kernel"] in ("forward", "backward"):
            assert (kernel["products"] > 0) == (job.dtype != "float32" or job.level == "high"), (
                kernel
            )


@pytest.mark.parametrize("job", IN_CHUNKS, ids=named)
def test_kernels_of_chunks_spill_nothing(job: Job, compiled: Any) -> None:
    kernels = compiled(job)
    largest = {"largest_weight"} if job.dtype == "bfloat16" else set()
    assert {"forward", "backward", *largest} <= {k["kernel"] for k in kernels}
    assert all(k["spilled"] == 0 and k["products"] == 0 for k in kernels)
    assert job.dtype == "bfloat16" or all(k["fusible"] == 0 for k in kernels)
