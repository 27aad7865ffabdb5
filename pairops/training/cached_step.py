"""A step over a batch whose graph does not fit: all embeddings first, then chunk after chunk."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.terms.checks import count, flag, function
from pairops.ops.terms.tensor_checks import check_embeddings
from pairops.progress import bar

__all__ = ["cached_step"]

Advance = Callable[[int], object]


def cached_step(
    loss: Callable[..., Any],
    *encoded: tuple[Callable[..., Tensor], Any],
    chunk_size: int,
    scaler: torch.amp.GradScaler | None = None,
    progress: bool | None = None,
) -> Any:
    """Compute a loss of encoders and its gradients with the graph of `chunk_size` rows at a time.

    The step is `loss(*[encoder(inputs) for encoder, inputs in encoded])`, and `.backward()` of it.
    Without a graph every chunk is encoded; the loss over all embeddings X gives ∂loss/∂X; then each
    chunk is encoded again, with the same random numbers, and its rows of ∂loss/∂X go back through
    it. Gradients add up in `.grad` as those of the one `backward()` would, for a forward pass of
    the encoders more. Zeroing gradients and the step of the optimizer remain to be done.

    An encoder must treat its rows one by one. Batch normalisation does not: in training it takes
    its statistics from a chunk, and updates the running ones twice; let it stand in `eval` mode, or
    take layer or group normalisation. The random numbers are those of torch's own generators, of
    the CPU, CUDA and XPU. A hook of a parameter sees the gradient of a chunk.

    Under autocast the backward pass runs outside it, as torch recommends. An encoder with
    `no_sync`, as DistributedDataParallel has, sends its gradients in its last chunk of the step,
    and ranks may have different numbers of rows, also none. It must itself be what stands in the
    pair. FullyShardedDataParallel communicates in every forward: there the ranks need the same
    number of chunks.

    Args:
        loss: a function of the embeddings, one (N_k, D_k) of each pair, that returns a scalar, or a
            tuple that begins with one. What else it takes, such as labels, a `functools.partial` or
            a lambda holds. Its own parameters get their gradients too.
        encoded: pairs (encoder, inputs). An encoder returns (rows, D). Inputs are a tensor, or
            tensors of the same length in a tuple or list, for `encoder(*chunk)`, or in a mapping,
            for `encoder(**chunk)`. The same encoder may stand in several pairs. An encoder whose
            embeddings want no gradient, as its first chunk tells, is a constant and is run once.
        chunk_size: an int, rows of a chunk.
        scaler: a GradScaler: the backward pass begins at scaler.scale(value). None: at the value.
        progress: True shows a bar anywhere, False nowhere. None: on a terminal, if tqdm is
            installed.

    Returns:
        What the loss returned, with the value detached.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        GradCache (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited
        Setup, RepL4NLP 2021).

    Differs from:
        The official code makes ∂loss/∂X of a frozen encoder too, leaves autocast's cache as it is,
        and asks for `no_sync` by a flag, pair by pair.
    """
    function("loss", loss, "a function of embeddings")
    rows = count("chunk_size", chunk_size, 1)
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(
            f"scaler is {type(scaler).__name__}; it must be a torch.amp.GradScaler or None"
        )
    flag("progress", progress, optional=True)
    if not encoded:
        raise ValueError("encoded is empty; it must hold at least one pair (encoder, inputs)")
    sets = [_Set.of(f"encoded[{k}]", pair, rows) for k, pair in enumerate(encoded)]
    rows = sum(one.rows for one in sets)
    with bar(progress, 2 * rows, "cached_step", "row") as advance:
        notes = [_Random(len(one.chunks)) for one in sets]
        embeddings = [one.embed(note, advance) for one, note in zip(sets, notes, strict=True)]
        result, slopes = _differentiate(loss, embeddings, scaler)
        del embeddings
        after = _Random(1)
        after.note(0)
        try:
            _replay(sets, slopes, notes, advance)
        finally:
            after.restore(0)
    return result


@dataclass(frozen=True, eq=False)
class _Set:
    """A pair (encoder, inputs), cut into chunks."""

    name: str
    encoder: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    named: dict[str, Tensor]
    rows: int
    chunks: list[slice]  # at least one, if of no rows: other ranks wait for this one

    @staticmethod
    def of(name: str, pair: object, chunk_size: int) -> "_Set":
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[0]):
            given = type(pair).__name__
            if isinstance(pair, tuple):
                given = f"({', '.join(type(part).__name__ for part in pair)})"
            raise TypeError(f"{name} is {given}; it must be a pair (encoder, inputs)")
        encoder, inputs = pair
        named: dict[str, Any] = {}
        some: tuple[Any, ...] = (inputs,)
        if isinstance(inputs, Mapping):
            named, some = dict(inputs), ()
        elif isinstance(inputs, (tuple, list)):
            some = tuple(inputs)
        rows = _rows(f"the inputs of {name}", [*some, *named.values()])
        chunks = [slice(i, min(i + chunk_size, rows)) for i in range(0, max(rows, 1), chunk_size)]
        return _Set(name, encoder, some, named, rows, chunks)

    def encode(self, chunk: slice) -> Tensor:
        named = {name: values[chunk] for name, values in self.named.items()}
        return self.encoder(*[values[chunk] for values in self.inputs], **named)

    def embed(self, random: "_Random", advance: Advance) -> Tensor:
        """Return embeddings (rows, D), a leaf; note the generators' state before each chunk."""
        # torch 2.6 caches casts made without a graph, and returns them where one is due.
        torch.clear_autocast_cache()
        x: Tensor | None = None
        wanted = False
        for k, chunk in enumerate(self.chunks):
            random.note(k)
            # The first chunk has a graph, which shows whether a gradient is wanted at all.
            with torch.set_grad_enabled(torch.is_grad_enabled() and x is None), self.alone():
                part = self.encode(chunk)
            name, count = f"the output of {self.name}", chunk.stop - chunk.start
            check_embeddings(name, part, None if x is None else ("its first chunk", x))
            if len(part) != count:
                raise ValueError(
                    f"{name} has {len(part)} rows; it must have {count}, one for each of its chunk"
                )
            if x is None:
                x, wanted = part.detach().new_empty(self.rows, part.shape[1]), part.requires_grad
            x[chunk] = part.detach()
            del part  # free its graph before the next chunk is run
            advance(count)
        assert x is not None
        return x.requires_grad_(wanted)

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients are not sent to other ranks."""
        no_sync = getattr(self.encoder, "no_sync", contextlib.nullcontext)
        quiet: contextlib.AbstractContextManager[Any] = no_sync()
        return quiet


def _rows(name: str, tensors: list[Any]) -> int:
    if not tensors:
        raise ValueError(f"{name} are empty; they must hold at least one tensor")
    for values in tensors:
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} hold {type(values).__name__}; they must hold tensors alone")
        if values.dim() == 0:
            raise ValueError(f"{name} hold a tensor of no dimension; the first must be the batch's")
        if values.requires_grad and not values.is_leaf:
            raise ValueError(
                f"{name} hold a tensor that has a graph; it must be detached, and what computes it "
                "be a part of the encoder"
            )
    lengths = sorted({len(values) for values in tensors})
    if len(lengths) > 1:
        raise ValueError(f"{name} hold tensors of {lengths} rows; all must have as many")
    return lengths[0]


def _differentiate(
    loss: Callable[..., Any], embeddings: list[Tensor], scaler: torch.amp.GradScaler | None
) -> tuple[Any, list[Tensor | None]]:
    """Run the loss; return its results and gradients, None where there is none."""
    result = loss(*embeddings)
    value = result[0] if isinstance(result, tuple) and result else result
    wanted = "it must be a scalar, or a tuple that begins with one"
    if not isinstance(value, Tensor):
        raise TypeError(f"loss returned {type(value).__name__}; {wanted}")
    if value.numel() != 1:
        raise ValueError(f"loss returned a tensor of shape {tuple(value.shape)}; {wanted}")
    if not value.requires_grad:
        raise ValueError(
            "loss returned a value without a gradient; an encoder or the loss must want one"
        )
    with no_autocast(value.device.type):
        (value if scaler is None else scaler.scale(value)).backward()
    value = value.detach()
    returned = (value, *result[1:]) if isinstance(result, tuple) else value
    return returned, [x.grad for x in embeddings]


def _replay(
    sets: list[_Set], slopes: list[Tensor | None], notes: list["_Random"], advance: Advance
) -> None:
    """Encode every chunk again, as at first, and send its rows of the gradients back."""
    torch.clear_autocast_cache()
    wanted = [one for one, slope in zip(sets, slopes, strict=True) if slope is not None]
    last = {id(one.encoder): one for one in wanted}
    for k, (one, random) in enumerate(zip(sets, notes, strict=True)):
        slope, slopes[k] = slopes[k], None  # so that it is freed with the set
        if slope is None:
            advance(one.rows)
            continue
        for number, chunk in enumerate(one.chunks):
            final = last[id(one.encoder)] is one and chunk is one.chunks[-1]
            with contextlib.nullcontext() if final else one.alone():
                random.restore(number)
                x = one.encode(chunk)
                if x.requires_grad:
                    with no_autocast(x.device.type):
                        x.backward(slope[chunk])
            advance(len(x))


class _Random:
    """States of the generators of the CPU, and of every device of a kind that is in use.

    They lie in one tensor: small ones, allocated between the chunks, would fragment the room that
    the graph of one chunk leaves to the next, and the heap would grow with every chunk.
    """

    def __init__(self, count: int) -> None:
        self.generators = [
            torch.default_generator,
            *torch.cuda.default_generators,  # none before the first use
            *torch.xpu.default_generators,
        ]
        states = [generator.get_state() for generator in self.generators]
        self.states = [state.new_empty(count, len(state)) for state in states]

    def note(self, k: int) -> None:
        for generator, states in zip(self.generators, self.states, strict=True):
            states[k] = generator.get_state()

    def restore(self, k: int) -> None:
        for generator, states in zip(self.generators, self.states, strict=True):
            generator.set_state(states[k].clone())  # torch 2.13 crashes on a view
