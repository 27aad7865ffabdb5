"""`python -m pairops --check`: every kernel for GPUs beside dense torch, in a process of its own,
which may trap or hang."""

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

from pairops.ops.engines import passed

_COMMAND = [sys.executable, "-m", "pairops.inspection.kernel_problems"]
# Seconds for one kernel: Triton compiles it, and a driver the wheel's PTX, in the first call.
_LIMIT = 90.0
_START = 180.0  # for torch and a CUDA context
_ENDING = 10.0

_BAD = "wrong", "trapped", "hung"


def check(
    command: Sequence[str] = _COMMAND, limit: float = _LIMIT, start: float = _START
) -> dict[str, Any]:
    """Try every kernel, and remember the engines of which all passed.

    Args:
        command: what starts a process of `kernel_problems`.
        limit: seconds for one kernel; then its process is ended.
        start: seconds until the process says what it will try.

    Returns:
        "device", "driver", "passed" (some kernel passed, and none was wrong, trapped or hung), and
        "kernels", a list of dictionaries: "key", "engine", "outcome" ("passed", "wrong", "trapped",
        "hung" or "declined") and "detail".
    """
    known: dict[str, Any] = {}
    found: dict[int, tuple[str, str]] = {}
    hung: dict[str, str] = {}  # engine → the kernel that did not return
    first = 0
    while True:
        with _Process([*command, str(first), *hung]) as process:
            at, outcome = _followed(process, known, found, limit, start)
        if not known:
            found[0] = outcome  # not even the list of kernels came
            known = {"identity": {}, "kernels": [["", "the start of the process"]]}
            break
        if at is None:
            break
        found[at] = outcome
        engine, key = known["kernels"][at]
        if outcome[0] == "hung":
            hung[engine] = key
        first = at + 1
    rows = []
    for k, (engine, key) in enumerate(known["kernels"]):
        row = found.get(k) or ("declined", f"not tried, since another hung: {hung.get(engine)}")
        rows.append({"key": key, "engine": engine, "outcome": row[0], "detail": row[1]})
    bad = {row["engine"] for row in rows if row["outcome"] in _BAD}
    good = {row["engine"] for row in rows if row["outcome"] == "passed"} - bad
    if any(row["outcome"] != "declined" for row in rows) and known["identity"]:
        passed.remember(known["identity"], good)
    return {
        "device": known["identity"].get("gpu"),
        "driver": known["identity"].get("driver"),
        "passed": bool(good) and not bad,
        "kernels": rows,
    }


def _followed(
    process: "_Process",
    known: dict[str, Any],
    found: dict[int, tuple[str, str]],
    limit: float,
    start: float,
) -> tuple[int | None, tuple[str, str]]:
    """Note what a process says until it ends; return the kernel that ended it and how, or None."""
    at: int | None = None
    while True:
        try:
            line = process.line(limit if at is not None else start)
        except queue.Empty:
            return at, ("hung", f"no answer in {limit if at is not None else start:g} seconds")
        if line is None:
            return at, ("trapped", process.end())
        if "kernels" in line:
            known.update(line)
        elif line["outcome"] is None:
            at = line["at"]
        elif line["outcome"] == "trapped":
            return at, (line["outcome"], line["detail"])
        else:
            found[line["at"]] = line["outcome"], line["detail"]
            at = None


class _Process:
    """A process that says lines of JSON, and is ended when its context is."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._lines: queue.Queue[Any] = queue.Queue()
        assert self._process.stdout is not None, "it is a pipe"
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        # Where a GPU hangs, not even the end of its process may come, nor that of the output.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING)
        self._reader.join(_ENDING)
        self._errors.close()

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                if line.startswith(b"{") and line.endswith(b"}\n"):  # no print of somebody else
                    self._lines.put(json.loads(line))
        self._lines.put(None)

    def line(self, limit: float) -> Any:
        """Return its next line, or None when it has ended; queue.Empty after so many seconds."""
        return self._lines.get(timeout=limit)

    def end(self) -> str:
        """Tell how the process ended, and the last line that it wrote to stderr."""
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        return f"the process ended {how}" + (f": {last[-200:]}" if last else "")


def report(as_json: bool) -> int:
    """Print what `check` finds; return 1 if a kernel is wrong, traps or hangs."""
    found = check()
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(f"device: {found['device']}, driver: {found['driver'] or '-'}")
        counts = Counter((row["engine"], row["outcome"], "") for row in found["kernels"])
        for row in found["kernels"]:
            if row["outcome"] != "passed":
                counts[row["engine"], row["outcome"], row["detail"]] += 1
        for (engine, outcome, detail), count in sorted(counts.items()):
            if outcome == "passed" or detail:
                print(f"  {engine:<10} {outcome:<10} {count:>4}  {detail}")
        for row in found["kernels"]:
            if row["outcome"] in _BAD:
                print(f"  {row['engine']} {row['outcome']}: {row['key']}")
        print(f"what passed is remembered in {passed.cache_file()}")
    return int(any(row["outcome"] in _BAD for row in found["kernels"]))
