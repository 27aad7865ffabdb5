"""The engines that tests run on, and the device they run on."""

import os

from pairops.ops.engines import ENGINES

# `python -m bench gpu` runs the tests with "cuda".
DEVICE = os.environ.get("PAIROPS_TEST_DEVICE", "cpu")

TRITON = ["triton", "chunked"]
NARROW = ["cuda", *TRITON]  # those that sum in float32
HERE = [name for name in ENGINES if DEVICE == "cpu" or name != "cpu"]
WIDE = [name for name in HERE if name not in NARROW]  # those that serve float64
