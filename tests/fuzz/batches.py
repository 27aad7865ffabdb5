"""Random batches, as lines of Python that make them."""

from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

DTYPES = ["torch.float64"] * 4 + ["torch.float32"] * 3 + ["torch.bfloat16", "torch.float16"]
INTEGERS = ["torch.uint8", "torch.int8", "torch.int16", "torch.int32"]
# Labels that wrap round, or round, where they are taken for something narrower.
WIDE = {
    "torch.int64": [-1, 0, 5, 2**62, 2**62 + 1, -(2**63), 2**63 - 1],
    "torch.uint64": [5, 2**63 - 100, 2**63, 2**64 - 1, 2**64 - 99, 2**64 - 100],
}


@dataclass
class Batch:
    """Lines that make x (n, d), labels and what else `keywords` names."""

    n: int
    d: int
    dtype: str
    lines: list[str] = field(default_factory=list)
    keywords: dict[str, str] = field(default_factory=dict)  # of `formulas.labelled`

    def call(self, name: str, params: object, **further: str) -> str:
        told = ", ".join(f"{k}={v}" for k, v in {**self.keywords, **further}.items())
        return f"labelled({name!r}, {params}, x, labels{told and ', ' + told})"


def centred(labels: Tensor, d: int, noise: float) -> Tensor:
    """Rows around a centre of their label: a solved batch, if there is little noise."""
    known = {label: k for k, label in enumerate(sorted(set(labels.tolist())))}
    centres = torch.randn(len(known), d)
    own = torch.tensor([known[label] for label in labels.tolist()], dtype=torch.int64)
    return centres[own] + noise * torch.randn(len(labels), d)


def rows(
    random: Random, n: str, d: int, dtype: str, labels: str = "", plain: bool = False,
    ties: bool = True,
) -> str:  # fmt: skip
    """n: an expression.  plain: no embeddings whose lengths differ much, nor near-duplicates.
    ties: also those of which many are equally similar."""
    narrow = dtype == "torch.float16"
    kinds = {
        "smooth": f"torch.randn({n}, {d})",
        "signs": f"embeddings({n}, {d})",
        "short": f"torch.randn({n}, {d}) / {d}**0.5",
    }
    if labels:
        noise = random.choice([1.0, 0.3] if plain else [1.0, 0.3, 0.03])
        kinds["solved"] = f"centred({labels}, {d}, {noise})"
    if not plain:
        near, lengths = random.choice([0.1, 1e-2, 1e-3]), 1 if narrow else 4
        kinds |= {
            "duplicates": f"torch.randn({n}, {d})[torch.randint(0, max({n}, 1), ({n},))]",
            "near": f"torch.randn(1, {d}) + {near} * torch.randn({n}, {d})",
            "lengths": f"torch.randn({n}, {d}) * 10 ** ({2 * lengths} * torch.rand({n}, 1) - "
            f"{lengths})",
            "zeros": f"torch.randn({n}, {d}) * (torch.rand({n}, 1) < 0.8)",
        }
    if not ties or dtype == "torch.float32":  # see `support.named_cases.turned`
        del kinds["signs"]
    made = random.choice(list(kinds.values()))
    return f"({made}).to({dtype})"


def labels(random: Random, n: str, kind: str) -> str:
    if kind in WIDE:
        known = f"{WIDE[kind]}[k] for k in torch.randint(0, {len(WIDE[kind])}, ({n},))"
        return f"torch.tensor([{known}], dtype={kind})"
    return {
        "few": f"torch.randint(0, {random.randint(1, 6)}, ({n},))",
        "one": f"torch.full(({n},), 7)",
        "alone": f"torch.randperm({n})",
        "twos": f"torch.arange({n}) // 2",
        "narrow": f"torch.randint(0, 5, ({n},), dtype={random.choice(INTEGERS)})",
    }[kind]


LABELS = ["few"] * 5 + ["one", "alone", "twos", "narrow", "torch.int64", "torch.uint64"]


def batch(
    random: Random, *, dtype: str = "", most: int = 24, plain: bool = False, ties: bool = True,
    alone: bool = False,
) -> Batch:  # fmt: skip
    """most: rows.  plain, ties: of `rows`.  alone: without references."""
    dtype = dtype or random.choice(DTYPES)
    n = random.choice([0, 1, 2, 3, *[random.randint(4, most)] * 12])
    d = random.choice([2, 5, 9, 16])
    kind = random.choice(LABELS)
    made = Batch(n, d, dtype, [f"labels = {labels(random, str(n), kind)}"])
    signed = kind not in ("narrow", "torch.uint64")
    if signed and random.random() < 0.3:
        made.lines.append("labels[torch.rand(len(labels)) < 0.2] = -100")
    made.lines.append(f"x = {rows(random, str(n), d, dtype, 'labels', plain, ties)}")
    if kind == "torch.int64" and random.random() < 0.5:
        made.keywords["ignore_index"] = random.choice(["None", str(2**63 - 1), "5"])
    if not alone and random.random() < 0.6:
        _references(random, made, kind, plain)
    elif random.random() < 0.2:
        made.keywords |= {"exclude_self": "False", "own": "torch.full((len(x),), -1)"}
    return made


def _references(random: Random, made: Batch, kind: str, plain: bool) -> None:
    n, d, dtype = made.n, made.d, made.dtype
    made.keywords |= {"ref_emb": "y", "ref_labels": "ref_labels"}
    way = random.choice(["apart", "apart", "same labels", "begin with x", "ids"])
    if way == "same labels":
        made.lines.append(f"y = {rows(random, str(n), d, dtype, 'labels', plain)}")
        made.keywords["ref_labels"] = "labels.clone()"
        return
    m = random.choice([0, 1, random.randint(2, 24), random.randint(2, 24)])
    others = random.choice(["torch.int64", "torch.uint64"]) if kind in WIDE else kind
    made.lines.append(f"ref_labels = {labels(random, str(m), others)}")
    made.lines.append(f"y = {rows(random, str(m), d, dtype, 'ref_labels', plain)}")
    if way == "begin with x" and others == kind:
        made.lines.append("y, ref_labels = torch.cat([x, y]), torch.cat([labels, ref_labels])")
        made.keywords |= {"exclude_self": "True", "own": "torch.arange(len(x))"}
    elif way == "ids":
        made.lines.append("ids, ref_ids = torch.randperm(60)[:len(x)], torch.randperm(60)[:len(y)]")
        made.keywords |= {"ids": "ids", "ref_ids": "ref_ids", "own": "places(ids, ref_ids)"}


def places(ids: Tensor, ref_ids: Tensor) -> Tensor:
    """Where each of `ids` stands in `ref_ids`, or -1."""
    known = {name: k for k, name in enumerate(ref_ids.tolist())}
    return torch.tensor([known.get(name, -1) for name in ids.tolist()], dtype=torch.int64)
