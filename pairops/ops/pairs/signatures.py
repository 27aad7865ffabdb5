"""Whole signatures and docstrings for functions that take shared keywords as `**common`."""

import difflib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, get_type_hints

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")
_SECTION = re.compile(r"^([A-Z][A-Za-z ]+):$")
_ORDER = ("", "Args", "Keyword Args", "Returns", "Raises")  # further sections stand after these


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
    common: Mapping[str, str] | None = None,
) -> None:
    """Give `called` the signature of `function` with its shared keywords spelled out.

    Its docstring is that of `function`, with the shared keywords after its arguments.

    Args:
        called: a function that takes what `function` takes.
        function: a function over `**keywords: Unpack[...]`.
        shared: the keywords by name, of `keywords_of`.
        returns: the type of what `called` returns. None: that of `function`.
        common: bodies of sections by name, for a docstring that lacks them.
    """
    signature = inspect.signature(function)
    group = _group(function)
    hints = {} if group is None else get_type_hints(group)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=shared[name].default, annotation=hint
        )
        for name, hint in hints.items()
    ]
    result = signature.return_annotation if returns is None else returns
    whole = signature.replace(parameters=parameters, return_annotation=result)
    called.__signature__ = whole  # type: ignore[attr-defined]
    if function.__doc__ is not None:
        texts = {name: shared[name].text for name in hints}
        called.__doc__ = documented(inspect.cleandoc(function.__doc__), texts, common or {})


def spelled_out(
    shared: Mapping[str, Keyword],
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a function over `**keywords: Unpack[...]`: `publish` it, refuse unknown keywords."""

    def made(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
            # The function itself says why it refuses a shared keyword, such as `group`.
            refuse_unknown(function.__name__, keywords.keys() - shared.keys(), known)
            return function(*args, **keywords)

        publish(called, function, shared)
        publish(function, function, shared)  # what tools for pages read
        known = frozenset(inspect.signature(called).parameters)
        return called

    return made


def documented(text: str, shared: Mapping[str, str], common: Mapping[str, str]) -> str:
    """Add the shared keywords, and the sections of `common` that the text lacks."""
    found = sections(text)
    if shared:
        entries = [f"    {wrapped(f'{name}: {entry}')}" for name, entry in shared.items()]
        found["Keyword Args"] = "\n".join(entries)
    for name, body in common.items():
        found.setdefault(name, f"    {wrapped(body, 4)}")
    names = [name for name in _ORDER if name in found]
    names += [name for name in found if name not in _ORDER]
    return (
        "\n\n".join([f"{name}:\n{found[name]}" if name else found[name] for name in names]) + "\n"
    )


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
            names = entry[1].split(", ")
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


def wrapped(entry: str, hang: int = 8) -> str:
    """Break an entry into lines of at most 100 characters; it stands four to the right."""
    return "\n".join(
        textwrap.wrap(
            entry, 100, initial_indent=" " * 4, subsequent_indent=" " * hang,
            break_long_words=False, break_on_hyphens=False,
        )
    ).strip()  # fmt: skip
