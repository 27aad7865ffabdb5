"""Headers, which begin every exchange: where each rank is, and whether one has failed.

A header has the same shape wherever a rank is, so ranks at different places in the program meet in
it before anything else is sent, and an error on each says who is where.
"""

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# Entries: a digest of the rank's fingerprint, its bytes, whether it failed; then numbers.
_FIXED = 3
ROOM = 2  # numbers of 8 bytes that travel in a header

# Settings that decide how ranks exchange, but are no arguments: name → this rank's value. Modules
# add their own.
AMBIENT: dict[str, Callable[[], str]] = {
    "grad mode": lambda: str(torch.is_grad_enabled()),
    "float32 matmul precision": torch.get_float32_matmul_precision,
}

# By process group, the number of calls that its ranks have agreed on, the same on all.
_calls: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

_E = TypeVar("_E", bound=Exception)


def calls(process_group: Any) -> int:
    return _calls.get(process_group, 0)


def another_call(process_group: Any) -> int:
    """Count and return the call that the ranks of the group have just agreed on."""
    _calls[process_group] = calls(process_group) + 1
    return _calls[process_group]


def known(error: _E) -> _E:
    """Mark `error` as one that the other ranks know, or cannot be told."""
    error.ranks_know = True  # type: ignore[attr-defined]
    return error


def is_known(error: Exception) -> bool:
    return getattr(error, "ranks_know", False)


def exchange(
    process_group: Any, fingerprint: Mapping[str, str], numbers: Tensor | None, *, failed: bool
) -> Tensor:
    """Return (ranks, ROOM) int64: the numbers of every rank; raise on all ranks if fingerprints
    differ or one has failed.

    fingerprint: where this rank is, and the values that all must share.  numbers: int64, at most
    ROOM.  failed: this rank has an error, fingerprint["error"].
    """
    text = json.dumps(fingerprint).encode()
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
    header = torch.tensor([digest, len(text), failed, *[0] * ROOM], device=device(process_group))
    if numbers is not None:
        header[_FIXED : _FIXED + len(numbers)] = numbers
    every = gathered(process_group, header)
    table = every[:, :_FIXED].tolist()
    if all(row == [digest, len(text), 0] for row in table):
        return every[:, _FIXED:]
    padded = torch.zeros(max(row[1] for row in table), dtype=torch.uint8)
    padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    texts = gathered(process_group, padded.to(header.device))
    heard = [
        json.loads(bytes(given[: row[1]].tolist())) for given, row in zip(texts, table, strict=True)
    ]
    errors = [f"rank {k} has {heard[k]['error']}" for k, row in enumerate(table) if row[2]]
    if errors:
        raise known(RuntimeError(f"not every rank could take part: {'; '.join(errors)}"))
    raise known(_difference(heard))


def device(process_group: Any) -> torch.device:
    """Return the device where numbers for the host are exchanged: the CPU if the group can, since
    it waits for no kernel."""
    backends = str(dist.get_backend_config(process_group))
    if "cpu:" in backends:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def gathered(process_group: Any, values: Tensor) -> Tensor:
    """Gather `values` of all ranks, of one shape, into (ranks, …)."""
    found = values.new_empty((dist.get_world_size(process_group), *values.shape))
    dist.all_gather(list(found.unbind()), values, group=process_group)
    return found


def _difference(heard: Sequence[Mapping[str, str]]) -> Exception:
    """Describe the ranks' places if they differ, else the first difference of fingerprints."""
    name = next(
        name
        for fingerprint in heard
        for name in fingerprint
        if len({other.get(name) for other in heard}) > 1
    )
    if name in ("place", "exchange"):
        where = _by_rank([_where(fingerprint) for fingerprint in heard], "is", "are")
        return RuntimeError(
            f"the ranks of the group are at different places: {where}; losses with a group must be "
            "called and differentiated in the same order on all ranks, and as often"
        )
    what = _by_rank([fingerprint.get(name, "nothing") for fingerprint in heard], "has", "have")
    return ValueError(f"the ranks of the group disagree about {name}: {what}; all must have one")


def _where(fingerprint: Mapping[str, str]) -> str:
    parts = [fingerprint["place"], fingerprint.get("loss"), fingerprint.get("exchange")]
    return ", ".join(filter(None, parts))


def _by_rank(said: Sequence[str], one: str, several: str) -> str:
    who: dict[str, list[int]] = {}
    for rank, value in enumerate(said):
        who.setdefault(value, []).append(rank)
    return "; ".join(
        f"rank {ranks[0]} {one} {value}"
        if len(ranks) == 1
        else f"ranks {', '.join(map(str, ranks))} {several} {value}"
        for value, ranks in who.items()
    )
