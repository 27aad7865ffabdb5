"""Right calls of every public function, and which values it accepts besides, with reasons."""

import contextlib
import inspect
import io
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pairops
from pairops import retrieval
from pairops.ops.pairs.signatures import shared_names
from support.loss_parameters import AGAINST_PROXIES, LABELLED, ONE_SET
from support.named_cases import smooth
from support.wrong_values import D, N, labels, rows


def shared() -> dict[str, Any]:
    """Another set, with what is told of both."""
    return {"ref_emb": smooth(N, D).flip(0), "ref_labels": labels(), **names_of_rows()}


def names_of_rows() -> dict[str, Any]:
    return {"ids": torch.arange(N), "ref_ids": torch.arange(N) + 3}


def of_loss(name: str) -> dict[str, Any]:
    given: dict[str, Any] = {"x": rows(), "weight": torch.ones(N)}
    if name in LABELLED:
        given |= {"labels": labels()}
        return given if name in ONE_SET else given | shared()
    if name in AGAINST_PROXIES:
        return given | {
            "labels": labels(), "proxies": smooth(N, D), "proxy_labels": torch.arange(N) // 2,
        }  # fmt: skip
    if name == "multi_positive_loss":
        return given | {"positives": torch.ones(N, 2, D), "negatives": smooth(3, D)}
    if name in ("conr_loss", "supremix_loss"):
        others = {"ref_emb": smooth(N, D).flip(0), "ref_values": torch.ones(N)}
        given |= {"values": torch.arange(N) / 3, **others, **names_of_rows()}
        if name == "conr_loss":
            given |= {"predictions": torch.arange(N) / 2, "ref_predictions": torch.ones(N)}
        return given
    if name == "soft_triplet_loss":
        return given | shared() | {
            "labels": labels(), "teacher": smooth(N, 3), "ref_teacher": smooth(N, 3),
        }  # fmt: skip
    if name == "gram_matching_loss":
        return given | {
            "teacher": smooth(N, 3), "ref_emb": smooth(N, D).flip(0), "ref_teacher": smooth(N, 3),
        }  # fmt: skip
    if name == "hydra_loss":
        given |= {"gate": smooth(N, D).flip(0), "labels": labels(), "partner_labels": labels()}
        return given | shared()
    given |= {"y": smooth(N, D).flip(0)}
    if name == "cosent_loss":
        given |= {"scores": torch.arange(N) / 3}
    if name == "nnclr_loss":
        given |= {"queue": smooth(4, D)}
    if name == "cwcl_loss":
        given |= {"teacher": smooth(N, 3)}
    if name == "distillation_loss":
        given |= {"teacher_x": smooth(N, 3), "teacher_y": smooth(N, 3)}
    if name == "tal_loss":
        given |= {"labels": labels()}
    if name == "sms_loss":
        classes = torch.arange(N) % 3
        given |= {"relevance": torch.eye(3), "x_classes": classes, "y_classes": classes}
    if name == "siglip_loss":
        given |= {"scale": 10.0, "bias": -10.0}
    return given


def pairs() -> pairops.Pairs:
    return pairops.Pairs.of(rows(), labels())


def of_per_anchor(values: Any) -> Any:
    return pairops.PositiveRows.of(pairs()).per_anchor(values)


K = len(pairops.PositiveRows.of(pairs()).anchor)

# Made once: each is kept for good, and planned anew.
ITSELF = pairops.Function(lambda s: s, name="itself")
TIMES = pairops.Function(lambda s, a: s * a, name="times")


def of_term(make: Callable[..., pairops.Term], side: Any, args: Any = 0.5, **more: Any) -> Any:
    two = (args, 0.0) if make in (pairops.total, pairops.lse) else ()
    if make in (pairops.lowest, pairops.highest):
        more.setdefault("function", TIMES)
        two = (args,)
    return pairops.row_stats(pairs(), make(side, *two, **more))


FIRST: Any = type("First", (), {})()  # stands for the term that is made anew for each call


def of_earlier(term: Any, grad: Any) -> Any:
    first = pairops.lse("neg", 1.0, 0.0)
    earlier = pairops.Earlier(first if term is FIRST else term, grad)
    return pairops.row_stats(pairs(), first, pairops.total("pos", 1.0, earlier))


def of_partner(values: Any) -> Any:
    return pairops.row_stats(pairs(), pairops.total("neg", 1.0, pairops.partner(values)))


def of_table(values: Any, owners: Any, partners: Any) -> Any:
    given = pairops.table(values, owners, partners)
    return pairops.row_stats(pairs(), pairops.total("neg", 1.0, given))


def of_between(owners: Any, partners: Any) -> Any:
    given = pairops.between(owners, partners)
    return pairops.row_stats(pairs(), pairops.total("neg", 1.0, given))


def of_row_stats(pairs: Any, rows: Any, cols: Any) -> Any:
    return pairops.row_stats(pairs, rows, cols=cols)


def of_pair_loss(x: Any, labels: Any, terms: Any, **keywords: Any) -> Any:
    return pairops.pair_loss(x, labels, terms, **keywords)


def of_cached_step(loss: Any, encoded: Any, **keywords: Any) -> Any:
    return pairops.cached_step(loss, encoded, **keywords)


def of_pair_weights(loss: Any, x: Any, rows: Any = None, cols: Any = None) -> Any:
    return pairops.pair_weights(loss, x, labels(), rows=rows, cols=cols)


def of_engine(name: Any) -> None:
    with pairops.engine(name):
        pass


def of_explain(loss: Any, x: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        pairops.explain(loss, x, labels())


def encoder() -> tuple[Any, Tensor]:
    return torch.nn.Linear(D, D), rows()


# By name: the function, with a name for each argument, and the arguments of a right call.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    **{n: (getattr(pairops, n), partial(of_loss, n)) for n in pairops.losses.LOSSES},
    "pair_loss": (
        of_pair_loss,
        lambda: {
            "x": rows(), "labels": labels(), "terms": pairops.lse("neg", 1.0, 0.0),
            "combine": lambda z: z, **shared(),
        },
    ),
    "Pairs.of": (pairops.Pairs.of, lambda: {"x": rows(), "labels": labels(), **shared()}),
    "Pairs.within": (
        pairops.Pairs.within,
        lambda: {
            "x": rows(), "values": torch.arange(N) / 3, "width": 0.5,
            "ref_emb": smooth(N, D).flip(0), "ref_values": torch.ones(N),
            "ids": torch.arange(N), "ref_ids": torch.arange(N) + 3,
        },
    ),
    "Pairs.paired": (pairops.Pairs.paired, lambda: {"x": rows(), "y": rows().flip(0)}),
    "PositiveRows.of": (pairops.PositiveRows.of, lambda: {"pairs": pairs()}),
    "PositiveRows.per_anchor": (of_per_anchor, lambda: {"values": torch.ones(K)}),
    "row_stats": (
        of_row_stats,
        lambda: {"pairs": pairs(), "rows": pairops.lse("neg", 1.0, 0.0), "cols": ()},
    ),
    "total": (partial(of_term, pairops.total), lambda: {"side": "neg"}),
    "lse": (partial(of_term, pairops.lse), lambda: {"side": "neg"}),
    "lowest": (partial(of_term, pairops.lowest), lambda: {"side": "neg"}),
    "highest": (partial(of_term, pairops.highest), lambda: {"side": "neg"}),
    "Term": (
        lambda **given: pairops.row_stats(pairs(), pairops.Term(**given)),
        lambda: {"statistic": "sum", "side": "neg", "function": ITSELF},
    ),
    "Earlier": (of_earlier, lambda: {"term": FIRST, "grad": True}),
    "partner": (of_partner, lambda: {"values": torch.ones(N)}),
    "table": (
        of_table, lambda: {"values": torch.eye(3), "owners": labels(), "partners": labels()},
    ),
    "between": (of_between, lambda: {"owners": rows(), "partners": rows()}),
    "Function": (pairops.Function, lambda: {"value": lambda s: s}),
    "mine": (pairops.mine, lambda: {"x": rows(), "labels": labels(), **shared()}),
    "pair_weights": (of_pair_weights, lambda: {"loss": pairops.ms_loss, "x": rows()}),
    "estimate_memory": (pairops.estimate_memory, lambda: {"n": 8, "d": 4}),
    "engine": (of_engine, lambda: {"name": "dense"}),
    "set_engine": (pairops.set_engine, lambda: {"name": "auto"}),
    "explain": (of_explain, lambda: {"loss": pairops.ms_loss, "x": rows()}),
    "cached_step": (
        of_cached_step,
        lambda: {"loss": lambda z: z.sum(), "encoded": encoder(), "chunk_size": 4},
    ),
    "CrossBatchMemory": (
        pairops.CrossBatchMemory,
        lambda: {"loss": pairops.ms_loss, "embedding_size": D, "memory_size": 4},
    ),
    "CrossBatchMemory.forward": (
        pairops.CrossBatchMemory(pairops.ms_loss, D, 4).forward,
        lambda: {"x": rows(), "labels": labels()},
    ),
    "evaluate": (retrieval.evaluate, lambda: {"x": rows(), "labels": labels(), **shared()}),
    "first_ranks": (retrieval.first_ranks, lambda: {"x": rows(), "labels": labels(), **shared()}),
    "average_precisions": (
        retrieval.average_precisions,
        lambda: {"x": rows(), "labels": labels(), **shared()},
    ),
    "dual_softmax": (retrieval.dual_softmax, lambda: {"x": rows(), "y": rows(), "bank": rows()}),
}  # fmt: skip

# What has the arguments of another by name, and takes them as they come.
_SIGNATURES: dict[str, Callable[..., Any]] = {
    "pair_loss": pairops.pair_loss, "row_stats": pairops.row_stats, "total": pairops.total,
    "lse": pairops.lse, "lowest": pairops.lowest, "highest": pairops.highest,
    "Term": pairops.Term, "cached_step": pairops.cached_step, "pair_weights": pairops.pair_weights,
}  # fmt: skip
_OF_ANOTHER = {"pair_weights": ("given", "keywords")}  # which go to its loss


def _signed(function: str) -> Callable[..., Any]:
    return _SIGNATURES.get(function, CALLS[function][0])


def _may_be_none(parameter: inspect.Parameter) -> bool:
    return parameter.default is None or "None" in str(parameter.annotation)


def _is_number(function: str, name: str) -> bool:
    """Is an argument annotated as a number that may be learned?"""
    parameter = inspect.signature(_signed(function)).parameters.get(name)
    return parameter is not None and "float | torch.Tensor" in str(parameter.annotation)


def names_of(function: str) -> list[str]:
    """The names of all arguments, those of `**pairing: Unpack[...]` too."""
    called = _signed(function)
    parameters = inspect.signature(called).parameters
    unpacked = [n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD]
    found = [n for n in parameters if n not in (*unpacked, *_OF_ANOTHER.get(function, ()))]
    return found + [n for n in (shared_names(called) if unpacked else ()) if n not in found]


def call(function: str, **changed: Any) -> Any:
    called, given = CALLS[function]
    return called(**{**given(), **changed})


# (functions, arguments, values, reason): patterns of names, several apart by a space or, of values,
# a comma.
_ZERO = "−1, 0, 1e-320"
ACCEPTED: list[tuple[str, str, str, str]] = [
    ("*", "labels ref_labels ids ref_ids", "ints beyond, bools", "integers are names"),
    ("*", "proxy_labels partner_labels", "ints beyond, bools", "integers are names"),
    ("sms_loss", "x_classes y_classes", "bools", "0 and 1 are classes"),
    (
        "tal_loss", "labels", "int rows, float8 rows, rows without features",
        "several labels for each row, of 0 and 1",
    ),
    ("*", "weight", "floats, floats with gradient", "they are right"),
    ("*", "epsilon smoothing label_smoothing", "0.5, 0-d", "they are right"),
    ("info_nce_loss", "false_negatives", _ZERO, "any finite number"),
    ("hard_negative*", "hardness concentration debias", "0, 1e-320", "0 or above"),
    ("info_nce_loss", "label_smoothing", "0, 1e-320", "from 0 to below 1"),
    ("info_nce_loss", "log_q", "floats, floats below 0, floats with gradient", "they are right"),
    ("*", "margin *_margin base bias epsilon tau tolerance", _ZERO, "any finite number"),
    ("siglip_loss hashing_loss", "scale", _ZERO, "any finite number"),
    ("conr_loss", "eta", _ZERO, "any finite number"),
    ("sms_loss", "gamma", _ZERO, "any finite number"),
    ("margin_loss", "beta", _ZERO, "any finite number"),
    ("proxy_nca_loss", "smoothing", "0, 1e-320", "from 0 to below 1"),
    ("arcface_loss", "cosine_margin", _ZERO, "any finite number"),
    (
        "margin_loss", "beta", "floats, floats below 0, floats with gradient, NaN in floats",
        "one for each class; what is learned may have any value",
    ),
    ("*", "ignore_index", "−1, 0", "they are right"),
    ("*", "width", "0, 0.5, 1e-320", "numbers, 0 or above"),
    (
        "Pairs.within conr_loss supremix_loss",
        "values ref_values predictions ref_predictions",
        "ints beyond, floats, floats *, NaN in floats, bools, float8",
        "any real numbers",
    ),
    (
        "cosent_loss", "scores", "ints beyond, floats, floats *, NaN in floats, bools, float8",
        "any real numbers",
    ),
    ("CrossBatchMemory.forward", "enqueue", "bools", "they are right"),
    ("CrossBatchMemory", "warmup", "0", "it is right"),
    ("estimate_memory", "n m", "0", "it is right"),
    (
        "*",
        "normalize symmetric detach_weights constant soft triplets rectified include_self grad "
        "index is_derivative finite map_at_r progress dynamic",
        "True", "it is right",
    ),
    ("dual_softmax", "x y", "one row less, no rows", "any number of them"),
    ("dual_softmax", "bank", "one row less", "any number of them, but none"),
    ("dual_softmax", "scale", "0.5", "it is right"),
    ("nnclr_loss", "queue", "double rows, one row less", "any number of them, cast"),
    ("cwcl_loss", "teacher", "double rows, rows one wider", "any floats, of any width"),
    ("distillation_loss", "x", "one row less, no rows", "y may have more rows"),
    ("info_nce_loss", "queue", "one row less, no rows", "any number of them"),
    ("sms_loss", "relevance", "* rows, one row less, rows one wider", "a table of any size"),
    ("table", "values", "* rows, one row less, rows one wider", "a table of any size"),
    ("between", "owners partners", "double rows", "they are cast to the dtype of statistics"),
    ("n_pair_loss *paired CrossBatchMemory.forward", "x", "double rows", "nothing to be like"),
    ("n_pair_loss", "x", "rows one wider", "nothing to be like"),
    ("proxy_* arcface_loss", "x proxies", "double rows", "proxies are cast to the dtype of x"),
    ("Pairs.paired", "x", "one row less, no rows", "y may have more rows"),
    ("multi_positive_loss", "negatives", "one row less, no rows", "any number of them"),
    ("pair_weights explain", "x", "double rows, rows one wider", "nothing to be like"),
    ("pair_weights", "rows cols", "a slice, empty int, one too many", "they are right"),
    ("row_stats", "cols", "an empty list", "no terms of columns"),
    ("Function", "name", "a str, an empty str", "they are right"),
    ("*", "value slopes combine loss", "a lambda, a class", "what they do when called is theirs"),
    (
        "total lse lowest highest Term", "args above below", "inf, −inf, −1, 0, 0.5, 1e-320, "
        "10**400, 0-d, 0-d int", "any number; beyond floats it is infinite",
    ),
    (
        "total lse lowest highest Term partner PositiveRows.per_anchor", "args above below values",
        "floats, floats *, NaN in floats, ints beyond, bools, float8, 0-d, 0-d int",
        "any real numbers, cast",
    ),
]  # fmt: skip


def accepted(function: str, name: str, value: str) -> bool:
    """Does the list say that the call is right with this, or the signature that None is?"""
    if value == "None":
        parameter = inspect.signature(_signed(function)).parameters.get(name)
        return parameter is None or _may_be_none(parameter)
    if value in ("0.5", "0-d") and _is_number(function, name):
        return True
    return any(
        any(fnmatchcase(function, f) for f in functions.split())
        and any(fnmatchcase(name, n) for n in names.split())
        and any(fnmatchcase(value, v) for v in values.split(", "))
        for functions, names, values, _ in ACCEPTED
    )
