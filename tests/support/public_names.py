"""The public names of pairops with their kinds and signatures, which `make api` writes down.

The text depends on nothing but the public face. Types stand by their bare names, so that it stays
the same when a module moves. Unions are sorted, since Python may keep either order. A class lists
nothing that it has from a public base, or from a base of another package.
"""

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typing_extensions

FILE = Path(__file__).parents[2] / "docs" / "api.txt"
MODULES = (
    "pairops",
    "pairops.functions",
    "pairops.nn",
    "pairops.retrieval",
    "pairops.compat.open_clip",
    "pairops.compat.pml",
    "pairops.compat.sentence_transformers",
)
# Made by functions such as `lse` and handed on: only its fields are public.
OPAQUE = {"pairops.Term"}
HEAD = """\
Every public name of pairops, its kind and its signature. `make api` writes this file from the code,
and tests/test_public_names.py holds it against the code. Types stand by their bare names. What is
listed as keywords is what `**common: Unpack[...]` stands for.
"""
WIDTH = 100


def text() -> str:
    """The whole file."""
    groups: dict[str, type] = {}
    entries = [
        "\n".join(entry(f"{module}.{name}", value, groups))
        for module in MODULES
        for name, value in sorted(named(module))
    ]
    entries += ["\n".join(keywords(name, groups[name])) for name in sorted(groups)]
    return "\n".join([HEAD, *(f"{one}\n" for one in entries)])


def named(module: str) -> Iterator[tuple[str, Any]]:
    parent, _, name = module.rpartition(".")
    if module == "pairops.functions":  # a module of another place, by its public name
        found = getattr(importlib.import_module(parent), name)
    else:
        found = importlib.import_module(module)
    for name in {*found.__all__}:
        yield name, getattr(found, name)


def entry(path: str, value: Any, groups: dict[str, type]) -> list[str]:
    """The lines of one name. groups: receives the classes of keywords that signatures name."""
    if inspect.isclass(value):
        return of_class(path, value, groups)
    if callable(value):
        return call(f"function {path}", signature(value), groups)
    return [f"constant {path} = {default(value)}"]


def of_class(path: str, cls: type, groups: dict[str, type]) -> list[str]:
    base = known_base(cls)
    if is_ours(definer(cls, "__init__")):
        lines = call(f"class {path}", signature(cls), groups, returns=False)
    else:
        lines = [f"class {path}, with the arguments of its base"]
    if base is not object:
        package = "" if is_ours(base) else f" of {package_of(base)}"
        lines.append(f"    is a {base.__name__}{package}")
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name in [] if path in OPAQUE else sorted(members(cls, base) - fields):
        lines += [f"    {line}" for line in member(name, cls, groups)]
    return lines


def known_base(cls: type) -> type:
    """The nearest base that is itself public, or of another package."""
    public = {id(value) for module in MODULES for _, value in named(module)}
    return next(base for base in cls.__mro__[1:] if id(base) in public or not is_ours(base))


def members(cls: type, known: type) -> set[str]:
    """Public names that pairops gives to a class, in its body or that of a base less known."""
    ours = [base for base in cls.__mro__ if is_ours(base) and not issubclass(known, base)]
    found = {name for base in ours for name in vars(base) if is_described(vars(base)[name])}
    found |= {name for base in ours for name in inspect.get_annotations(base)}
    return {name for name in found if not name.startswith("_")}


def is_described(value: object) -> bool:
    return inspect.isroutine(value) or inspect.isdatadescriptor(value)


def member(name: str, cls: type, groups: dict[str, type]) -> list[str]:
    value = inspect.getattr_static(cls, name, None)
    if isinstance(value, property):
        return [f"property {name}{result(signature(value.fget))}"]
    if isinstance(value, staticmethod):
        return call(f"static method {name}", signature(value.__func__), groups)
    if isinstance(value, classmethod):
        return call(f"class method {name}", signature(getattr(cls, name)), groups)
    if inspect.isroutine(value):
        whole = signature(value)
        without_self = [*whole.parameters.values()][1:]
        return call(f"method {name}", whole.replace(parameters=without_self), groups)
    return [f"attribute {name}: {shown(typing.get_type_hints(cls)[name])}"]


def keywords(name: str, group: type) -> list[str]:
    hints = typing.get_type_hints(group)
    return [f"keywords {name}", *(f"    {key}: {shown(hints[key])}" for key in sorted(hints))]


# ── whose a class is ──


def package_of(cls: type) -> str:
    return cls.__module__.split(".")[0]


def is_ours(cls: type) -> bool:
    return package_of(cls) == "pairops"


def definer(cls: type, name: str) -> type:
    """The class in whose body a name stands."""
    return next(base for base in cls.__mro__ if name in vars(base))


# ── signatures ──


def signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function, eval_str=True)


def call(
    head: str, of: inspect.Signature, groups: dict[str, type], *, returns: bool = True
) -> list[str]:
    """A call on one line, or with a parameter on each."""
    words = list(parameters(of))
    end = result(of) if returns else ""
    for parameter in of.parameters.values():
        group = typing_extensions.get_args(parameter.annotation)
        if is_unpacked(parameter.annotation) and typing_extensions.is_typeddict(group[0]):
            known = groups.setdefault(group[0].__name__, group[0])
            assert known is group[0], f"two classes of keywords are called {known.__name__}"
    line = f"{head}({', '.join(words)}){end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{head}(", *(f"    {word}," for word in words), f"){end}"]


def parameters(of: inspect.Signature) -> Iterator[str]:
    kinds = [p.kind for p in of.parameters.values()]
    for at, p in enumerate(of.parameters.values()):
        if p.kind is p.KEYWORD_ONLY and not {*kinds[:at]} & {p.KEYWORD_ONLY, p.VAR_POSITIONAL}:
            yield "*"
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        word = stars + p.name
        if p.annotation is not p.empty:
            word += f": {shown(p.annotation)}"
        if p.default is not p.empty:
            word += f" = {default(p.default)}" if ":" in word else f"={default(p.default)}"
        yield word
        if p.kind is p.POSITIONAL_ONLY and kinds[at + 1 : at + 2] != [p.kind]:
            yield "/"


def result(of: inspect.Signature) -> str:
    empty = of.return_annotation is of.empty
    return "" if empty else f" -> {shown(of.return_annotation)}"


def default(value: object) -> str:
    """A value as it would be written; a function or a class by its name."""
    name = getattr(value, "__name__", None)
    if name is None and is_ours(type(value)):
        name = getattr(value, "name", None)
    shown_as = str(name) if name is not None else repr(value)
    assert " at 0x" not in shown_as, f"{shown_as} is not the same in every process"
    return shown_as


def is_unpacked(annotation: object) -> bool:
    return bare(typing_extensions.get_origin(annotation)) == "Unpack"


def shown(annotation: object) -> str:
    """A type by bare names, alike on every version of Python."""
    if annotation in (None, type(None)):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, list):  # the arguments of a Callable
        return f"[{', '.join(map(shown, annotation))}]"
    of, arguments = typing_extensions.get_origin(annotation), typing_extensions.get_args(annotation)
    if of in (typing.Union, types.UnionType):
        words = sorted(map(shown, arguments), key=lambda word: (word == "None", word.lower()))
        return " | ".join(words)
    if of in (typing.Literal, typing_extensions.Literal):
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if of is None:
        return bare(annotation)
    return f"{bare(of)}[{', '.join(map(shown, arguments))}]"


def bare(annotation: object) -> str:
    name = getattr(annotation, "__qualname__", None) or getattr(annotation, "_name", None)
    return str(name or annotation).rpartition(".")[2]


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"written: {FILE}")
