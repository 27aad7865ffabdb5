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
CRASH = r"Fatal Python error.*?/(tests/[^\"]+)\", line \d+ in (test_\w+)"
PATIENCE = {"likely": 900.0, "whole": 3600.0}  # seconds, after which a run has failed


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
            status = ended(run, patience)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it, and whatever it started
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    text = log.read_text(errors="replace")
    if status is None:
        return f"no result after {patience:.0f} s"
    if status == 0:
        return None
    # With xdist a group's name follows that of the test.
    found = re.findall(r"^(FAILED|ERROR) (.+?)(?:@\w+)?(?: - .*)?$", text, re.MULTILINE)
    for _, test in sorted(found, key=lambda each: each[0] == "ERROR"):
        if "::" in test:
            return str(test)
    # A worker that dies takes pytest with it. The innermost call of a test is told first.
    if dead := re.search(CRASH, text, re.DOTALL):
        return f"{dead[1]}::{dead[2]}"
    raise BrokenMutant(f"pytest ends with status {status}, and no test failed:\n{text[-3000:]}")


def ended(run: subprocess.Popen[bytes], patience: float) -> int | None:
    """The exit status. Seconds count in which this process runs, too: a machine may be halted."""
    for _ in range(int(patience)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return run.wait(1)
    return None


def lasting_failure(log: Path) -> str | None:
    """The same of all tests; a test counts if it fails once more on its own. On a machine that is
    busy elsewhere some fail that wait for other processes."""
    passed: list[str] = []
    while test := failure([f"--deselect={name}" for name in passed], log, PATIENCE["whole"]):
        if "::" not in test or failure([test], log, PATIENCE["likely"]):
            return test
        passed.append(test)
    return None
