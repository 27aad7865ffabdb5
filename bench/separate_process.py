"""Work in a process of its own, whose answer comes back as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.contestants import reason


def in_separate_process(module: str, *arguments: str, **environment: str) -> Any:
    """What `answer` says in a fresh process; RuntimeError with its reason if it cannot finish."""
    answer = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        # `-m` looks into the working directory first; this one has no second pairops to offer.
        cwd=Path(__file__).parent,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode < 0:
        raise RuntimeError(f"killed by signal {-answer.returncode}, most likely out of memory")
    if answer.returncode > 0:
        raise RuntimeError(next(reversed(answer.stderr.strip().splitlines()), "no reason given"))
    return json.loads(answer.stdout.splitlines()[-1])


def answer(work: Callable[[], object]) -> None:
    """The other end of `in_separate_process`."""
    try:
        print(json.dumps(work()))
    except Exception as error:
        sys.exit(reason(error))
