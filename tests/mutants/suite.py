"""A run of the copy's tests up to the first failure: which test it was."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mutants.tree import TREE, BrokenMutant, environment

# As `make test` runs them.
PYTEST = ("-m", "pytest", "-n", "2", "--dist", "loadgroup", "-x", "-q", "-rfE")
PATIENCE = {"likely": 900, "whole": 3600}  # seconds, after which a run has failed


def failure(tests: Sequence[str], log: Path, patience: float) -> str | None:
    """The test that fails first, or None if all pass. A run that takes too long has failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said:
        run = subprocess.Popen(
            [sys.executable, *PYTEST, *tests],
            cwd=TREE,
            env=environment() | {"COLUMNS": "500"},  # no name is cut short
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = run.wait(patience)
        except subprocess.TimeoutExpired:
            return f"no result after {patience:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it, and whatever it started
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    text = log.read_text(errors="replace")
    if status == 0:
        return None
    # With xdist a group's name follows that of the test.
    found = re.findall(r"^(FAILED|ERROR) (.+?)(?:@\w+)?(?: - .*)?$", text, re.MULTILINE)
    for _, test in sorted(found, key=lambda each: each[0] == "ERROR"):
        if "::" in test:
            return str(test)
    raise BrokenMutant(f"pytest ends with status {status}, and no test failed:\n{text[-3000:]}")


def lasting_failure(log: Path) -> str | None:
    """The same of all tests; a test counts if it fails once more on its own. On a machine that is
    busy elsewhere some fail that wait for other processes."""
    passed: list[str] = []
    while test := failure([f"--deselect={name}" for name in passed], log, PATIENCE["whole"]):
        if "::" not in test or failure([test], log, PATIENCE["likely"]):
            return test
        passed.append(test)
    return None
