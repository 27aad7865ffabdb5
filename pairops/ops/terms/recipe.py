"""Recipes: terms as ops take them, as a string with numbers and vectors beside it.

A `Term` holds tensors and a callable; an op takes neither. So terms travel as a recipe, such as
`"lowest:pos:identity lse:neg:affine>"`. It is op argument, lookup key, test id and benchmark row:

    recipe = row terms separated by spaces [ " | " column terms ]
    term   = statistic ":" side ":" function [ "(" kinds ")" ] [ ">" ] [ "<" ] [ "@" ]
    kinds  = one letter per argument, left out if all are f:
             f a number, o one value per owner, p one value per partner, t a table,
             b a product of further embeddings, l the same of learned ones,
             e0 the first of the row terms (or column terms), g0 with its gradient
    > <    = a window, `above=` or `below=`; >0 is one by the first term
    @      = an extreme that keeps its argument, and so has a gradient
"""

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Argument, Between, EarlierAt, Partner, Table
from .functions import FUNCTIONS
from .term import Term


def key(term: Term) -> str:
    """Return the text of the term in a recipe."""
    kinds = "".join([_letter(a) for a in term.args])
    windows = [w if isinstance(w, EarlierAt) else None for w in (term.above, term.below)]
    return _key(term, kinds if kinds.strip("f") else "", *[w and str(w.place) for w in windows])


def _letter(argument: Argument) -> str:
    if isinstance(argument, EarlierAt):
        return f"{'g' if argument.grad else 'e'}{argument.place}"
    if isinstance(argument, Between):
        return "l" if argument.grad else "b"
    return {float: "f", Partner: "p", Table: "t"}.get(type(argument), "o")


def cpu_key(term: Term) -> str:
    """Return the name of the compiled term on a CPU, where a number is a value per owner."""
    return _key(term, _by_partner(term))


def cuda_key(term: Term) -> str:
    """Return the same for a GPU, where side and windows are arguments of a kernel."""
    statistic = term.statistic + ("@" if term.keeps_argument else "")
    kinds = _by_partner(term)
    return f"{statistic}:{term.function.name}" + (f"({kinds})" if kinds else "")


def _by_partner(term: Term) -> str:
    letter = {Partner: "p", Table: "t"}
    kinds = "".join(
        [_letter(a) if type(a) is Between else letter.get(type(a), "o") for a in term.args]
    )
    return kinds if kinds.strip("o") else ""


def _key(term: Term, kinds: str, above: str | None = None, below: str | None = None) -> str:
    result = f"{term.statistic}:{term.side}:{term.function.name}"
    result += f"({kinds})" if kinds else ""
    result += "" if term.above is None else f">{above or ''}"
    result += "" if term.below is None else f"<{below or ''}"
    return result + ("@" if term.keeps_argument else "")


def pack(rows: Sequence[Term], cols: Sequence[Term]) -> tuple[str, list[float], list[Tensor]]:
    """Pack terms, all `over` their pairs, as (recipe, numbers, vectors)."""
    terms = (*rows, *cols)
    recipe = " ".join([key(term) for term in rows])
    if cols:
        recipe += " | " + " ".join([key(term) for term in cols])
    numbers = [a for term in terms for a in term.args if isinstance(a, float)]
    vectors = [z for term in terms for _, z, _ in term.operands()]
    return recipe, numbers, vectors


@functools.cache
def _template(word: str) -> Term:
    """Return the term with arbitrary numbers and tensors."""
    parts = re.fullmatch(r"(\w+):(\w+):(\w+)(?:\((\w+)\))?(>\d*)?(<\d*)?(@?)", word)
    if parts is None or parts[3] not in FUNCTIONS:
        raise ValueError(f"recipe term {word!r} is not understood, or names no registered function")
    statistic, side, name, kinds, *windows, keeps = parts.groups()
    function = FUNCTIONS[name]
    holder = torch.empty(0)
    of_kind: dict[str, Argument] = {
        "f": 0.0, "o": holder, "p": Partner(holder), "t": Table(holder, holder, holder),
        "b": Between(holder, holder, False), "l": Between(holder, holder, True),
    }  # fmt: skip

    def argument(kind: str) -> Argument:
        if kind in of_kind:
            return of_kind[kind]
        return EarlierAt(int(kind[1:]), kind[0] == "g")

    above, below = [
        w and (EarlierAt(int(w[1:]), window=True) if w[1:] else holder) for w in windows
    ]
    return Term(
        statistic,
        side,
        function,
        tuple([argument(kind) for kind in re.findall(r"[a-z]\d*", kinds or "f" * function.arity)]),
        above,
        below,
        grad=bool(keeps) or statistic not in ("lowest", "highest"),
    )


_Terms = tuple[tuple[Term, ...], tuple[Term, ...]]


def unpack(recipe: str, numbers: Sequence[float], vectors: Sequence[Tensor]) -> _Terms:
    """Return the row terms and column terms that `pack` has packed."""
    # Terms of numbers alone are read once; numbers under torch.compile may be symbols.
    if not vectors and all(type(number) is float for number in numbers):
        return _of_numbers(recipe, tuple(numbers))
    return _read(recipe, numbers, vectors)


@functools.lru_cache
def _of_numbers(recipe: str, numbers: tuple[float, ...]) -> _Terms:
    return _read(recipe, numbers, ())


def _read(recipe: str, numbers: Sequence[float], vectors: Sequence[Tensor]) -> _Terms:
    number, vector = iter(numbers), iter(vectors)

    def read(word: str) -> Term:
        return _template(word).filled(number, vector)

    rows, _, cols = recipe.partition(" | ")
    return tuple([read(word) for word in rows.split()]), tuple([read(w) for w in cols.split()])
