"""The test of the tests: wrong edits of the package, each of which `make test` must catch.

make mutants [ARGS="--only window --output table.md"]

Each edit is made in a copy of the tree. The tests that are likely to catch it run first, and if
they pass, all tests; what a part of `make test` catches, `make test` catches. The likely tests must
pass without an edit, and so must every test that catches one. A run that takes too long counts as a
failure, and the table says so; an edit that does not compile, or whose tests cannot be collected,
is an error. The exit status is 1 if a mutant survives, and 2 for an error.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mutants import cpp_mutants, python_mutants
from mutants.mutant import Mutant
from mutants.suite import PATIENCE, failure, lasting_failure
from mutants.tree import FOLDER, ROOT, BrokenMutant, Tree

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

LOGS = FOLDER / "logs"
MUTANTS = [*python_mutants.MUTANTS, *cpp_mutants.MUTANTS]
SURVIVES = "nothing: it SURVIVES"


class Verdict(NamedTuple):
    mutant: Mutant
    by: str  # the test that caught it
    seconds: float
    broken: bool = False

    @property
    def caught(self) -> bool:
        return not self.broken and self.by != SURVIVES

    def row(self) -> str:
        # Without parameters, which vary from machine to machine.
        by = f"`{self.by.partition('[')[0].removeprefix('tests/')}`" if "::" in self.by else self.by
        return f"| {self.mutant.name} | `{self.mutant.file}` | {by} | {self.seconds:.0f} |"


def verdict(tree: Tree, mutant: Mutant, quick: bool) -> Verdict:
    begin = time.monotonic()
    log = LOGS / (re.sub(r"\W+", "_", mutant.name) + ".txt")
    try:
        with tree.mutated(mutant):
            by = failure(mutant.likely, log, PATIENCE["likely"])
            by = by or (None if quick else lasting_failure(log)) or SURVIVES
    except BrokenMutant as error:
        LOGS.mkdir(exist_ok=True)
        log.write_text(str(error))
        return Verdict(mutant, f"broken, see {log}", time.monotonic() - begin, broken=True)
    return Verdict(mutant, by, time.monotonic() - begin)


def right(tests: Iterable[str], log: str) -> bool:
    """Do these tests pass without an edit?"""
    chosen = sorted(set(tests))
    wrong = failure(chosen, LOGS / log, PATIENCE["whole"]) if chosen else None
    if wrong:
        print(f"not mutated, {wrong} fails: see {LOGS / log}")
    return not wrong


def shown(mutants: Sequence[Mutant]) -> Iterable[Mutant]:
    """The mutants one by one, beside a bar if tqdm is installed."""
    return mutants if tqdm is None else tqdm(mutants, unit="mutant")


def say(line: str) -> None:
    print(line, flush=True) if tqdm is None else tqdm.write(line)


def table(verdicts: Iterable[Verdict]) -> str:
    head = ["| mutant | file | caught by | seconds |", "|---|---|---|---|"]
    return "\n".join([*head, *[each.row() for each in verdicts], ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("--only", default="", metavar="NAME", help="part of the names of mutants")
    parser.add_argument("--list", action="store_true", help="print their names and nothing else")
    parser.add_argument("--quick", action="store_true", help="run no tests but the likely ones")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table here, too")
    given = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if given.only in mutant.name]
    if given.list:
        print("\n".join([f"{mutant.file}: {mutant.name}" for mutant in chosen]))
        return 0
    for mutant in chosen:
        mutant.applied(ROOT)  # none of them is out of date
    begin = time.monotonic()
    tree = Tree()
    likely = {test for mutant in chosen for test in mutant.likely}
    if not right(likely, "right.txt"):
        return 2
    print(f"built, and right without an edit: {time.monotonic() - begin:.0f} s", flush=True)
    verdicts: list[Verdict] = []
    for mutant in shown(chosen):
        verdicts.append(verdict(tree, mutant, given.quick))
        say(verdicts[-1].row())
        if given.output:
            given.output.write_text(table(verdicts))
    print(table(verdicts))
    caught = [each for each in verdicts if each.caught]
    print(f"{len(caught)} of {len(verdicts)} caught, {time.monotonic() - begin:.0f} s")
    others = {each.by for each in caught if "::" in each.by}
    if not right(others, "right_again.txt") or any(each.broken for each in verdicts):
        return 2
    return 0 if len(caught) == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
