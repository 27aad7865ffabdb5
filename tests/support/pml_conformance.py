"""Runs pytorch-metric-learning's own tests of its losses on the classes of pairops.compat.pml.

    python tests/support/pml_conformance.py CHECKOUT

CHECKOUT is a copy of its repository: the distributions on PyPI, sources too, come without tests.
Each test module finds our classes in place of those that it imports.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_metric_learning import losses

from pairops.compat import pml

MODULES = [
    "circle_loss",
    "contrastive_loss",
    "lifted_structure_loss",
    "margin_loss",
    "multi_similarity_loss",
    "nca_loss",
    "npairs_loss",
    "ntxent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "signal_to_noise_ratio_losses",
    "supcon_loss",
    "triplet_margin_loss",
]
# By dtypes, what is left out. Sums there are in float16, here in float32 and then rounded.
RUNS = {
    "float32,float64": {},
    "float16": {
        "test_circle_loss.py::TestCircleLoss::test_circle_loss": "compares with a sum in float16 "
        "to 1e-5: 213.5 where float64 has 213.39, of which the nearest float16 is 213.375",
        "test_ntxent_loss.py::TestNTXentLoss::test_ntxent_loss_with_ref": "fails there as well",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout.resolve()
    folder = checkout / "tests" / "losses"
    if not folder.is_dir():
        parser.error(f"checkout is {checkout}; it must hold tests/losses")
    if "TEST_DTYPES" not in os.environ:
        command = [sys.executable, __file__, str(checkout)]
        device = {"TEST_DEVICE": "cpu", **os.environ}
        runs = [subprocess.run(command, env=device | {"TEST_DTYPES": each}) for each in RUNS]
        return max(run.returncode for run in runs)
    for name in pml.__all__:
        if name != "convert":
            theirs = sys.modules[getattr(losses, name).__module__]
            for place in (losses, theirs):
                setattr(place, name, getattr(pml, name))
    modules = [folder / f"test_{name}.py" for name in MODULES]
    left_out = RUNS.get(os.environ["TEST_DTYPES"], {})
    for test, reason in left_out.items():
        print(f"left out: {test}: {reason}")
    return pytest.main(
        [
            *[str(module) for module in modules if module.exists()],
            *[f"--deselect=tests/losses/{test}" for test in left_out],
            f"--rootdir={checkout}",
            "--quiet",
            "-pno:cacheprovider",
            "--disable-warnings",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
