"""Docstrings of public names: every parameter is documented, in order, in sections of one order.

The parser is this file's own: what the library reads of its docstrings it reads in another way.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from pairops import losses
from support import public_names

pytest.importorskip("pytorch_metric_learning")

ORDER = ["Args", "Keyword Args", "Returns", "Raises", "Source", "Differs from"]
MODULES = public_names.MODULES


class Public(NamedTuple):
    """What is documented: its text, and its parameters if they are its own."""

    text: str
    signature: inspect.Signature | None


def public() -> Iterator[tuple[str, Public]]:
    for module in MODULES:
        for name, value in sorted(public_names.named(module)):
            path = f"{module}.{name}"
            if inspect.isclass(value):
                yield from of_class(path, value)
            elif callable(value):
                yield path, of_function(value)
                if hasattr(value, "with_aux"):
                    yield f"{path}.with_aux", of_function(value.with_aux)


def of_function(function: Callable[..., Any], bound: bool = False) -> Public:
    signature = inspect.signature(function)
    if bound:
        signature = signature.replace(parameters=[*signature.parameters.values()][1:])
    return Public(inspect.getdoc(function) or "", signature)


def of_class(path: str, cls: type) -> Iterator[tuple[str, Public]]:
    own = public_names.is_ours(public_names.definer(cls, "__init__"))
    yield path, Public(inspect.getdoc(cls) or "", inspect.signature(cls) if own else None)
    if path in public_names.OPAQUE:
        return
    for name in sorted(public_names.members(cls, public_names.known_base(cls))):
        value = inspect.getattr_static(cls, name, None)
        if isinstance(value, property):
            yield f"{path}.{name}", Public(inspect.getdoc(value) or "", None)
        elif isinstance(value, staticmethod):
            yield f"{path}.{name}", of_function(getattr(cls, name))
        elif inspect.isroutine(value):
            yield f"{path}.{name}", of_function(getattr(cls, name), bound=True)


def sections(text: str) -> dict[str, list[str]]:
    """The lines of every section, by its name; what stands before the first is named ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.split("\n"):
        if re.fullmatch(r"[A-Z][A-Za-z ]*:", line):
            name = line[:-1]
            assert name not in found, f"there are two sections {name}"
            found[name] = []
        else:
            found[name].append(line)
    return found


def entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of every entry: a line at four spaces, and deeper ones that belong to it."""
    joined = re.sub(r"\n {5,}", " ", "\n".join(lines).strip("\n"))
    for line in filter(None, joined.split("\n")):
        name, colon, text = line.partition(": ")
        assert colon, f"not an entry: {line!r}"
        yield name.strip(), text.strip()


def check(one: Public) -> None:
    first, *rest = one.text.split("\n")
    assert first.endswith("."), f"the first line does not end with a period: {first!r}"
    assert not rest or not rest[0], f"the first line is not alone: {rest[0]!r}"
    assert max(map(len, [first, *rest])) <= 100
    found = sections(one.text)
    known = [name for name in found if name in ORDER]
    assert known == sorted(known, key=ORDER.index), f"the sections stand as {known}"
    for name in found.keys() - {""}:
        assert any(line.strip() for line in found[name]), f"section {name} is empty"
        assert all(not line or line.startswith("    ") for line in found[name]), name
    documented = dict(entries(found.get("Args", []) + found.get("Keyword Args", [])))
    assert all(documented.values()), f"entries without a text: {documented}"
    if one.signature is not None:
        assert list(documented) == list(one.signature.parameters)


PUBLIC = dict(public())


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_a_docstring_says_what_the_signature_does(path: str) -> None:
    check(PUBLIC[path])


@pytest.mark.parametrize("name", losses.__all__)
def test_a_loss_names_its_source(name: str) -> None:
    assert "Source" in sections(PUBLIC[f"pairops.{name}"].text)


GOOD = """Do it.

Args:
    a: int, a number
        with a long text.
    b: more of them.

Returns:
    None.
"""


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("", "", None),
        ("Do it.", "Do it", "period"),
        ("Do it.\n", "Do it.\nAt once.\n", "alone"),
        ("    b: more of them.\n", "", "a"),
        ("a: int", "c: int", "c"),
        ("    a: int, a number\n        with a long text.\n", "    a:\n", "not an entry"),
        ("more of them.", "more of them.\n    c: one too many.", "c"),
        ("Args:", "Returns:\n    None.\n\nArgs:", "two sections"),
        ("Args:", "Raises:\n    ValueError: if not.\n\nArgs:", "sections stand as"),
        ("    None.", "None.", "Returns"),
    ],
)
def test_the_check_can_fail(old: str, new: str, error: str | None) -> None:
    def example(a: int, *b: int) -> None: ...

    one = Public(inspect.cleandoc(GOOD.replace(old, new, 1)), inspect.signature(example))
    if error is None:
        check(one)
        return
    with pytest.raises(AssertionError, match=error):
        check(one)
