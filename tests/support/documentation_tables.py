"""The tables in the documentation that follow from the code, which `make api` writes down.

A table stands between the lines `<!-- NAME: made by make api -->` and `<!-- end -->` of a page.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pairops import losses
from pairops.ops.pairs.signatures import sections
from pairops.ops.terms import functions

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "losses.md"]
MADE = re.compile(r"(<!-- (\w+): made by make api -->\n).*?(<!-- end -->)", re.DOTALL)

# C++'s names of what recipes gather, and of sides' windows.
_STATISTICS = {"Sum": "total", "LogSumExp": "lse", "Lowest": "lowest", "Highest": "highest"}
_STATISTICS |= {"LowestValue": "lowest", "HighestValue": "highest"}


def families() -> str:
    """The losses by the file that they stand in, whose first sentence says what they are."""
    found: dict[str, list[str]] = {}
    for name, loss in losses.LOSSES.items():
        module = sys.modules[loss.__module__]
        found.setdefault(_clause(module.__doc__ or ""), []).append(f"`{name}`")
    return table(["family", "losses"], [[k, ", ".join(v)] for k, v in found.items()])


def formulas() -> str:
    rows = [
        [f"`{name}`", _formula(loss), _defaults(loss), _learnable(loss)]
        for name, loss in losses.LOSSES.items()
    ]
    return table(["loss", "of an anchor", "defaults", "may be learned"], rows)


def sources() -> str:
    rows = [
        [f"`{name}`", _section(loss, "Source"), _section(loss, "Differs from") or "—"]
        for name, loss in losses.LOSSES.items()
    ]
    return table(["loss", "source", "differs from"], rows)


def pair_functions() -> str:
    """Which statistics of which pair functions are compiled, for a CPU and for a GPU."""
    rows = []
    for name in functions.__all__:
        function = getattr(functions, name)
        if not isinstance(function, functions.Function):
            continue
        args = ", ".join(["s", *list(inspect.signature(function.value).parameters)[1:]])
        value = (inspect.getdoc(function.value) or "").partition("\n")[0]
        rows.append([f"`{name}({args})`", value, *_compiled(name)])
    return table(["pair function", "value", "on a CPU", "by `cuda` too"], rows)


def _compiled(name: str) -> tuple[str, str]:
    source = (ROOT / "csrc" / "recipes.h").read_text(encoding="utf-8")
    both, _, cpu = source.partition("using OfTheCpu")
    return _statistics(both + cpu, name), _statistics(both, name)


def _statistics(source: str, name: str) -> str:
    """`lse` of positives, say, of the terms in C++ that have this function."""
    cpp_name = "".join(word.capitalize() for word in name.split("_"))
    pattern = rf"Term<(\w+), Side::(\w+), {cpp_name}[,>]"
    found: dict[str, set[str]] = {}
    for statistic, side in re.findall(pattern, source):
        found.setdefault(_STATISTICS[statistic], set()).add(side)
    return "; ".join([f"`{k}` of {', '.join(sorted(v))}" for k, v in sorted(found.items())]) or "—"


def _own(loss: Callable[..., Any]) -> list[inspect.Parameter]:
    """The keywords that the loss's source spells out."""
    written = inspect.unwrap(loss).__code__  # type: ignore[attr-defined]
    begin = written.co_argcount
    names = written.co_varnames[begin : begin + written.co_kwonlyargcount]
    return [inspect.signature(loss).parameters[name] for name in names]


def _defaults(loss: Callable[..., Any]) -> str:
    shown = [f"{p.name} = {p.default}" for p in _own(loss) if p.default is not None]
    return ", ".join(shown) or "—"


def _learnable(loss: Callable[..., Any]) -> str:
    names = [p.name for p in _own(loss) if "float | torch.Tensor" in str(p.annotation)]
    names += [name for name in inspect.signature(loss).parameters if name == "proxies"]
    return ", ".join(names) or "—"


def _formula(loss: Callable[..., Any]) -> str:
    return " ".join((loss.__doc__ or "").split("\n\n")[0].split())


def _section(loss: Callable[..., Any], name: str) -> str:
    return " ".join(sections(inspect.getdoc(loss) or "").get(name, "").split())


def _clause(sentence: str) -> str:
    return re.split(r"[:;.]", sentence.strip().replace("\n", " "))[0]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


TABLES = {
    "families": families,
    "formulas": formulas,
    "sources": sources,
    "pair_functions": pair_functions,
}


def written(text: str) -> str:
    """A page with its tables made anew."""

    @functools.cache
    def made(name: str) -> str:
        return TABLES[name]()

    return MADE.sub(lambda found: f"{found[1]}\n{made(found[2])}\n{found[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"written: {page}")
