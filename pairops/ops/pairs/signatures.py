"""Whole signatures and docstrings for functions that take shared keywords as `**common`."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

_ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)$")
_SECTION = re.compile(r"^([A-Z][A-Za-z ]+):$")


@dataclass(frozen=True)
class Keyword:
    """A keyword that several functions share: its default, and the text of its documentation."""

    default: Any
    text: str


def keywords_of(function: Callable[..., Any]) -> dict[str, Keyword]:
    """Read the keyword-only parameters of a function, with their lines under `Args:`."""
    texts = arguments(inspect.getdoc(function) or "", "Args")
    return {
        name: Keyword(parameter.default, texts.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def shared_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """List the names in the TypedDict of a function's `**common: Unpack[...]`."""
    group = _group(function)
    return () if group is None else tuple(get_type_hints(group))


def publish(
    called: Callable[..., Any],
    function: Callable[..., Any],
    shared: Mapping[str, Keyword],
    returns: Any = None,
) -> None:
    """Give `called` the signature of `function` with its shared keywords spelled out, and their
    documentation after its own."""
    own = inspect.signature(function)
    group = _group(function)
    hints = {} if group is None else get_type_hints(group)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=shared[name].default, annotation=hint
        )
        for name, hint in hints.items()
    ]
    result = own.return_annotation if returns is None else returns
    whole = own.replace(parameters=parameters, return_annotation=result)
    called.__signature__ = whole  # type: ignore[attr-defined]
    if function.__doc__ is not None:
        texts = {name: shared[name].text for name in hints}
        called.__doc__ = documented(inspect.cleandoc(function.__doc__), texts)


def documented(text: str, shared: Mapping[str, str]) -> str:
    """Add the shared keywords, and what every loss returns and raises, after `Args:`."""
    found = sections(text)
    added = []
    if shared:
        lines = [f"    {name}: {_indented(entry)}" for name, entry in shared.items()]
        added.append("\n".join(["Keyword Args:", *lines]))
    added += [f"{name}:\n    {entry}" for name, entry in _ALWAYS.items() if name not in found]
    names = list(found)
    after = names.index("Args") + 1 if "Args" in names else 1
    parts = [body if not name else f"{name}:\n{body}" for name, body in found.items()]
    return "\n\n".join([*parts[:after], *added, *parts[after:]]) + "\n"


_ALWAYS = {
    "Returns": 'float32, or float64 of float64 embeddings: 0-d, or (N,) with reduction="none".',
    "Raises": "ValueError, TypeError: the message names the argument, what it was and must be.",
}


def sections(text: str) -> dict[str, str]:
    """Split a docstring of Google's style; the text before the first section has the name ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.strip().splitlines():
        header = _SECTION.match(line)
        if header:
            name = header[1]
            found[name] = []
        else:
            found[name].append(line)
    return {name: "\n".join(lines).rstrip() for name, lines in found.items()}


def arguments(text: str, section: str) -> dict[str, str]:
    """Read the entries `name: text` of one section; a deeper line continues the entry above."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in sections(text).get(section, "").splitlines():
        entry = _ENTRY.match(line)
        if entry:
            names = [name.strip("*") for name in entry[1].split(", ")]
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def unknown_keyword(name: str, keyword: str, known: Iterable[str], hint: str = "") -> TypeError:
    """Build the error for a keyword that a function does not have."""
    near = difflib.get_close_matches(keyword, sorted(known), 1)
    say = hint or (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}")
    return TypeError(f"{name}() has no keyword {keyword!r}; {say}")


def refuse_unknown(name: str, given: Collection[str], known: frozenset[str]) -> None:
    for keyword in given:
        if keyword not in known:
            raise unknown_keyword(name, keyword, known)


def _group(function: Callable[..., Any]) -> Any:
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD and parameter.annotation is not parameter.empty:
            (group,) = getattr(parameter.annotation, "__args__", (None,))
            return group
    return None


def _indented(entry: str, width: int = 92) -> str:
    lines, line = [], ""
    for word in entry.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n        ".join([*lines, line])
