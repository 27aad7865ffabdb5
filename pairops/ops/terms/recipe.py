"""Terms as ops take them: a recipe that names them, with their numbers and vectors beside it.

A `Term` holds tensors and a callable; an op takes neither. So terms travel as a recipe, such as
`"lowest:pos:identity lse:neg:affine>"`. It is op argument, lookup key, test id and benchmark row:

    recipe = row terms separated by spaces [ " | " column terms ]
    term   = gather ":" side ":" function [ "(" kinds ")" ] [ ">" ] [ "<" ] [ "@" ]
    kinds  = one letter per argument, left out if all are f:
             f a number, o one value per owner, p one value per partner, t a table
    > <    = a window, `above=` or `below=`
    @      = an extreme that keeps its argument, and so has a gradient
"""

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .functions import FUNCTIONS
from .term import Argument, Partner, Table, Term


def key(term: Term) -> str:
    """The term as it stands in a recipe."""
    letter = {float: "f", Partner: "p", Table: "t"}
    kinds = "".join([letter.get(type(a), "o") for a in term.args])
    return _key(term, kinds if kinds.strip("f") else "")


def cpu_key(term: Term) -> str:
    """The same, where a number is as good as one value per owner: what is compiled for CPUs."""
    return _key(term, _by_partner(term))


def cuda_key(term: Term) -> str:
    """What is left of that on GPUs, where side and windows are arguments of a kernel."""
    gather = term.gather + ("@" if term.keeps_argument else "")
    kinds = _by_partner(term)
    return f"{gather}:{term.function.name}" + (f"({kinds})" if kinds else "")


def _by_partner(term: Term) -> str:
    letter = {Partner: "p", Table: "t"}
    kinds = "".join([letter.get(type(a), "o") for a in term.args])
    return kinds if kinds.strip("o") else ""


def _key(term: Term, kinds: str) -> str:
    result = f"{term.gather}:{term.side}:{term.function.name}"
    result += f"({kinds})" if kinds else ""
    result += "" if term.above is None else ">"
    result += "" if term.below is None else "<"
    return result + ("@" if term.keeps_argument else "")


def pack(rows: Sequence[Term], cols: Sequence[Term]) -> tuple[str, list[float], list[Tensor]]:
    """Terms, all of them `over` their pairs, as (recipe, numbers, vectors)."""
    terms = (*rows, *cols)
    recipe = " ".join([key(term) for term in rows])
    if cols:
        recipe += " | " + " ".join([key(term) for term in cols])
    numbers = [a for term in terms for a in term.args if isinstance(a, float)]
    vectors = [z for term in terms for _, z, _ in term.operands()]
    return recipe, numbers, vectors


@functools.cache
def _template(word: str) -> Term:
    """The term with numbers and tensors that mean nothing."""
    parts = re.fullmatch(r"(\w+):(\w+):(\w+)(?:\((\w+)\))?(>?)(<?)(@?)", word)
    if parts is None or parts[3] not in FUNCTIONS:
        raise ValueError(f"recipe term {word!r} is not understood, or names no registered function")
    gather, side, name, kinds, above, below, keeps = parts.groups()
    function = FUNCTIONS[name]
    holder = torch.empty(0)
    of_kind: dict[str, Argument] = {
        "f": 0.0, "o": holder, "p": Partner(holder), "t": Table(holder, holder, holder),
    }  # fmt: skip
    return Term(
        gather,
        side,
        function,
        tuple([of_kind[kind] for kind in kinds or "f" * function.arity]),
        holder if above else None,
        holder if below else None,
        grad=bool(keeps) or gather not in ("lowest", "highest"),
    )


_Terms = tuple[tuple[Term, ...], tuple[Term, ...]]


def unpack(recipe: str, numbers: Sequence[float], vectors: Sequence[Tensor]) -> _Terms:
    """The inverse of `pack`: row terms and column terms."""
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
