"""The mutants are still edits of what stands in the files, and the tests asked first are there."""

import ast

import pytest

from mutants import cpp_mutants, python_mutants
from mutants.mutant import Mutant
from support.project import ROOT

MUTANTS = [*python_mutants.MUTANTS, *cpp_mutants.MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_an_edit_applies_and_its_tests_exist(mutant: Mutant) -> None:
    """`make mutants` runs them; this says at once that a changed line has a mutant."""
    text = mutant.applied(ROOT)
    if not mutant.compiled:
        ast.parse(text)
    for test in mutant.likely:
        file, _, name = test.partition("[")[0].partition("::")
        assert not name or f"def {name}(" in (ROOT / file).read_text()
        assert (ROOT / file).exists()


def test_the_tests_asked_first_have_the_parameters_that_are_named(
    request: pytest.FixtureRequest,
) -> None:
    """Of tests that this run has collected: `make test` has all that it runs."""
    collected: dict[str, set[str]] = {}
    for item in request.session.items:
        test = item.nodeid.partition("@")[0]  # what pytest-xdist adds
        collected.setdefault(test.partition("[")[0], set()).add(test)
    for test in {test for mutant in MUTANTS for test in mutant.likely if "[" in test}:
        found = collected.get(test.partition("[")[0])
        assert found is None or test in found, test


def test_names_are_apart() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
