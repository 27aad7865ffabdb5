"""Values that are wrong for most arguments of a function on 6 rows of 5 features."""

import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

from support.named_cases import smooth

N, D = 6, 5
F8 = torch.float8_e4m3fn


def rows() -> Tensor:
    return smooth(N, D)


def labels() -> Tensor:
    return torch.arange(N) // 2


# As many of them as rows where that is what might go unseen.
VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a str": lambda: "0.1",
    "an empty str": lambda: "",
    "bytes": lambda: b"mean",
    "True": lambda: True,
    "an object": object,
    "a list": lambda: [0, 0, 1, 1, 2, 2],
    "an empty list": list,
    "a tuple": lambda: (0.5, 0.5),
    "a dict": dict,
    "a set": lambda: {"mean"},
    "a slice": lambda: slice(2),
    "a class": lambda: int,
    "a lambda": lambda: lambda z: z,
    "a module": lambda: math,
    "complex": lambda: 1j,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "−inf": lambda: -math.inf,
    "−1": lambda: -1,
    "0": lambda: 0,
    "0.5": lambda: 0.5,
    "10**400": lambda: 10**400,
    "1e-320": lambda: 1e-320,
    "an array of numbers": lambda: numpy.arange(N),
    "an array of rows": lambda: numpy.zeros((N, D), numpy.float32),
    "an array of objects": lambda: numpy.array([None, "mean"], dtype=object),
    "numpy's bool": lambda: numpy.bool_(True),
    "0-d": lambda: torch.tensor(0.5),
    "0-d int": lambda: torch.tensor(1),
    "0-d complex": lambda: torch.tensor(1j),
    "0-d on meta": lambda: torch.tensor(0.5, device="meta"),
    "0-d sparse": lambda: torch.tensor(0.5).to_sparse(),
    "empty": lambda: torch.zeros(0),
    "empty int": lambda: torch.zeros(0, dtype=torch.int64),
    "one too many": lambda: torch.zeros(N + 1, dtype=torch.int64),
    "floats": lambda: torch.ones(N),
    "floats with gradient": lambda: torch.ones(N, requires_grad=True),
    "floats below 0": lambda: -torch.ones(N),
    "NaN in floats": lambda: torch.full((N,), math.nan),
    "ints beyond": lambda: torch.arange(N) + 1000,
    "bools": lambda: torch.ones(N, dtype=torch.bool),
    "complex numbers": lambda: torch.ones(N, dtype=torch.complex64),
    "float8": lambda: torch.ones(N).to(F8),
    "ints on meta": lambda: labels().to("meta"),
    "floats on meta": lambda: torch.ones(N, device="meta"),
    "sparse ints": lambda: labels().to_sparse(),
    "sparse floats": lambda: torch.ones(N).to_sparse(),
    "int rows": lambda: torch.ones(N, D, dtype=torch.int64),
    "complex rows": lambda: torch.ones(N, D, dtype=torch.complex64),
    "float8 rows": lambda: torch.ones(N, D).to(F8),
    "double rows": lambda: rows().double(),
    "rows on meta": lambda: rows().to("meta"),
    "sparse rows": lambda: rows().to_sparse(),
    "csr rows": lambda: rows().to_sparse_csr(),
    "mkldnn rows": lambda: rows().to_mkldnn(),
    "nested rows": lambda: torch.nested.nested_tensor([torch.ones(2, D), torch.ones(4, D)]),
    "views of rows": lambda: torch.ones(N // 2, 2, D),
    "rows one wider": lambda: smooth(N, D + 1),
    "one row less": lambda: smooth(N - 1, D),
    "no rows": lambda: torch.zeros(0, D),
    "rows without features": lambda: torch.zeros(N, 0),
}
