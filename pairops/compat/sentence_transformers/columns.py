"""The columns of a dataset embedded, at once or some texts at a time, for a loss of pairops."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pairops.losses.objective.keywords import Value
from pairops.nn.module import LossModule
from pairops.ops.distributed.group import Given, Group
from pairops.ops.pairs.signatures import sections
from pairops.ops.terms.plain_numbers import plain_int

__all__ = ["LabelledLoss", "PairedLoss"]

# Of a column of N texts: tensors whose first size is N, and what is said of all of them.
Features: TypeAlias = Mapping[str, Any]


class _OfColumns(LossModule):
    """A loss of pairops over the columns of a dataset that `model` embeds."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Value],
        *,
        group: Given = None,
        mini_batch_size: int | None = None,
        **arguments: Any,
    ) -> None:
        whole = plain_int(mini_batch_size)
        if mini_batch_size is not None and (whole is None or whole < 1):
            raise ValueError(
                f"mini_batch_size is {mini_batch_size!r}; it must be an int of at least 1, or None"
            )
        super().__init__(loss, **arguments)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._averaged)
        self.model = model  # the trainer puts its wrapped model here, under this name
        self.group = group
        self.mini_batch_size = whole

    def embed(self, features: Features) -> Tensor:
        """Embed a column of texts.

        Args:
            features: the tensors of N texts, and what is said of all of them.

        Returns:
            (N, D) the embeddings.
        """
        if self.mini_batch_size is None:
            embedding: Tensor = self.model(features)["sentence_embedding"]
            return embedding
        # Not the caching of gradients by hooks: here the loss stays one graph, so its own
        # parameters, a scaler and accumulation over steps are served as they are without chunks.
        # The memory is as small: a chunk is encoded again when its backward begins, and is freed
        # when it ends. DDP may see only the first call of a column: in each it synchronises, and
        # forgets what it knows of a backward that has begun.
        replica = isinstance(self.model, DistributedDataParallel)
        models = chain([self.model], repeat(self.model.module if replica else self.model))
        chunks = _chunks(features, self.mini_batch_size)
        encoded = [checkpoint(_encode, models, chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(encoded)

    @property
    def uses_gradient_cache(self) -> bool:
        """Whether texts are encoded again in the backward pass: MatryoshkaLoss asks for it."""
        return self.mini_batch_size is not None

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Value:
        """Return the loss of embeddings.

        MatryoshkaLoss puts a function in its place, which calls it with the first dimensions of
        them, once for each number of dimensions.

        Args:
            reps: the embeddings of every column, in pieces.
            labels: as in `forward`.
            with_backward: True gives the embeddings their gradients.

        Returns:
            What the loss returns.
        """
        value = self._loss_of([torch.cat(pieces) for pieces in reps], labels)
        if with_backward:
            # What the loss learns would get its gradient now, before a scaler or DDP knows of it.
            if any(p.requires_grad for p in self._learned()):
                raise ValueError(
                    "the loss has parameters that learn, and mini_batch_size inside MatryoshkaLoss "
                    "has none for them; give it numbers, or mini_batch_size=None"
                )
            value.backward()
        return value

    def _learned(self) -> list[nn.Parameter]:
        """Return the parameters of the loss itself, without the model's."""
        of_model = {id(p) for p in self.model.parameters()}
        return [p for p in self.parameters() if id(p) not in of_model]

    def _loss_of(self, columns: list[Tensor], labels: Any) -> Value:
        """Return the loss of the embeddings of every column."""
        raise NotImplementedError

    def _value(self, columns: list[Features], labels: Any) -> Value:
        embeddings = [self.embed(features) for features in columns]
        if "calculate_loss" not in vars(self):
            return self._loss_of(embeddings, labels)
        # The function in its place goes backward from parts of these, so they are copies; the
        # gradients that they get are those of the embeddings.
        leaves = [z.detach().requires_grad_(z.requires_grad) for z in embeddings]
        with_backward = torch.is_grad_enabled() and any(z.requires_grad for z in leaves)
        value = self.calculate_loss([[z] for z in leaves], labels, with_backward=with_backward)
        if not with_backward:
            return value
        known = [torch.zeros_like(z) if z.grad is None else z.grad for z in leaves]
        found: Tensor = _Known.apply(value.detach(), len(known), *known, *embeddings)  # type: ignore[no-untyped-call]
        return found

    def of(self, *tensors: Tensor, **further: Any) -> Value:
        """Call the loss with the arguments of this Module.

        Args:
            tensors: embeddings, and labels of a loss over labels.
            further: arguments that go before those of the Module.

        Returns:
            What the loss returns.
        """
        group = self._here()
        further |= {} if group is None else {"group": group}
        return LossModule.forward(self, *tensors, **further)

    def _here(self) -> Given:
        alone = not (distributed.is_available() and distributed.is_initialized())
        return None if self.group == "auto" and alone else self.group

    def _averaged(self, gradient: Tensor) -> Tensor:
        """Average a gradient of the loss over ranks: DDP averages those of `model` alone."""
        group = Group.of(self._here(), {"loss": type(self).__name__})
        return gradient if group is None else group.total(gradient) / group.size

    def get_config_dict(self) -> dict[str, Any]:
        """Return what a model card shows."""
        name = getattr(self.function, "__name__", repr(self.function))
        options = {"group": self.group, "mini_batch_size": self.mini_batch_size}
        return {"loss": name, **{n: getattr(self, n) for n in self.names}, **options}

    @property
    def citation(self) -> str:
        """BibTeX for a model card: the source that the docstring of the loss names."""
        function = getattr(self.function, "function", self.function)
        name = getattr(function, "__name__", type(function).__name__)
        title = f"{function.__module__}.{name}"
        source = sections(inspect.getdoc(function) or "").get("Source", "")
        note = " ".join(source.split("\n\n")[0].split())
        return f"@misc{{{name},\n    title={{{title}}},\n    note={{{note}}}\n}}"


class PairedLoss(_OfColumns):
    """A loss over two sets, `pairops.info_nce_loss` or another: PairedLoss(model, siglip_loss, …).

    The columns of the dataset are anchors, positives, and hard negatives, as many columns as there
    are. Every text of the columns after the first is compared with every anchor.

    Args:
        model: a SentenceTransformer.
        loss: a function `(x, y, **arguments)`, or a Module such as `pairops.nn.SigLIPLoss()`, whose
            parameters the trainer trains too.
        group: a process group, or "auto" for the default group if there is one, as every loss has.
        mini_batch_size: an int: encode so many texts at a time and each of them twice, for the
            memory of so many; numbers are those of the whole batch. Not inside AdaptiveLayerLoss,
            whose changes of the model are over when a text is encoded again. None: encode all at
            once.
        arguments: arguments of the loss; the trainer trains those that are an `nn.Parameter`.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.
    """

    def forward(  # type: ignore[override]
        self,
        sentence_features: Iterable[Features],
        labels: object = None,  # noqa: ARG002
    ) -> Value:
        """Return the loss of a batch.

        Args:
            sentence_features: the columns of the batch, two or more.
            labels: anything; it is not looked at.

        Returns:
            What the loss returns.
        """
        columns = list(sentence_features)
        if len(columns) < 2:
            raise ValueError(
                f"sentence_features has {len(columns)} columns; it must have at least 2: anchors, "
                "positives, and hard negatives if there are any"
            )
        return self._value(columns, None)

    def _loss_of(self, columns: list[Tensor], labels: Any) -> Value:  # noqa: ARG002
        """Return the loss of the embeddings of every column."""
        x, *others = columns
        return self.of(x, torch.cat(others))


class LabelledLoss(_OfColumns):
    """A loss over labels, of a column of texts and one of integers: LabelledLoss(model, ms_loss).

    Args:
        model: a SentenceTransformer.
        loss: a function `(x, labels, **arguments)`, or a Module such as `pairops.nn.MSLoss()`,
            whose parameters the trainer trains too.
        group: a process group, or "auto" for the default group if there is one, as every loss has.
        mini_batch_size: an int: encode so many texts at a time and each of them twice, as in
            `PairedLoss`. None: encode all at once.
        arguments: arguments of the loss; the trainer trains those that are an `nn.Parameter`.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.
    """

    def forward(  # type: ignore[override]
        self, sentence_features: Iterable[Features], labels: Tensor
    ) -> Value:
        """Return the loss of a batch.

        Args:
            sentence_features: the one column of the batch.
            labels: (N,) integers; −100 is ignored, see `Pairs.of`.

        Returns:
            What the loss returns.
        """
        columns = list(sentence_features)
        if len(columns) != 1:
            raise ValueError(f"sentence_features has {len(columns)} columns; it must have 1")
        return self._value(columns, labels)

    def _loss_of(self, columns: list[Tensor], labels: Any) -> Value:
        """Return the loss of the embeddings of the one column."""
        return self.of(columns[0], labels)


class _Known(torch.autograd.Function):
    """A node: a loss, the number of its gradients, these, and what they are by → the loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        known = ctx.saved_tensors
        return None, None, *[None] * len(known), *[gradient.to(z.dtype) * z for z in known]


def _encode(models: Iterator[nn.Module], chunk: Features) -> Tensor:
    # A copy: a model writes into the dict that it gets, and this one is encoded twice.
    embedding: Tensor = next(models)(dict(chunk))["sentence_embedding"]
    return embedding


def _chunks(features: Features, size: int) -> list[dict[str, Any]]:
    """The same column, at most `size` texts at a time."""
    # A prompt is as long for all texts, however many numbers say so.
    sliced = {
        name: value
        for name, value in features.items()
        if isinstance(value, Tensor) and name != "prompt_length"
    }
    rows = {name: len(value) for name, value in sliced.items() if value.dim()}
    if len({*rows.values()}) != 1 or len(rows) < len(sliced):
        raise ValueError(
            f"mini_batch_size is {size} and sentence_features has tensors with "
            f"{', '.join(f'{count} {name}' for name, count in rows.items())}; every one of them "
            "must have one row for each text"
        )
    (count,) = {*rows.values()}
    return [
        {**features, **{name: value[begin : begin + size] for name, value in sliced.items()}}
        for begin in range(0, count, size)
    ]
