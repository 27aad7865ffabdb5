"""One class for each loss function, made from its signature and named after it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pairops.ops.pairs.signatures import arguments, documented, wrapped
from pairops.ops.terms.checks import count

from .module import LossModule, check_arguments

_MOST = 2**31  # proxies, or features: their product is still a number

# Words that are not written with one capital.
_SPELT = {
    "ap": "AP", "arcface": "ArcFace", "auc": "AUC", "conr": "ConR", "cosent": "CoSENT",
    "cwcl": "CWCL", "mlcd": "MLCD", "ms": "MS", "nca": "NCA", "nce": "NCE", "nnclr": "NNCLR",
    "nt": "NT", "siglip": "SigLIP", "sms": "SMS", "supcon": "SupCon", "supremix": "SupReMix",
    "tal": "TAL",
}  # fmt: skip

# pytorch-metric-learning has a class of this name with other defaults: who changed the import alone
# would get other numbers in silence.
RENAMED = {
    "ArcFaceLoss": "ArcFaceProxyLoss",
    "ContrastiveLoss": "ContrastivePairLoss",
    "LiftedStructureLoss": "LiftedStructurePairLoss",
    "MarginLoss": "MarginPairLoss",
    "SmoothAPLoss": "SmoothAPPairLoss",
}

# The class to write for a class of pytorch-metric-learning, with that one's defaults.
ELSEWHERE = {
    "ContrastiveLoss": 'ContrastivePairLoss(distance="l2", reduction="mean_pairs")',
    "GeneralizedLiftedStructureLoss": "LiftedStructurePairLoss()",
    "LiftedStructureLoss": 'LiftedStructurePairLoss(form="original", reduction="mean_pairs")',
    "MarginLoss": 'MarginPairLoss(triplets=True, reduction="mean_pairs")',
    "MultiSimilarityLoss": "MSLoss(epsilon=None)",
    "NPairsLoss": 'NPairLoss(distance="cosine")',
    "SignalToNoiseRatioContrastiveLoss": (
        'ContrastivePairLoss(distance="snr", reduction="mean_pairs")'
    ),
    "TripletMarginLoss": 'TripletLoss(mining="all", distance="l2", reduction="mean_pairs")',
}

# Classes that both libraries have under one name, with the default reduction of that library. The
# loss of an anchor is the same.
_OTHER_REDUCTION = {
    "CircleLoss": "mean_nonzero",
    "FastAPLoss": "mean_nonzero",
    "NCALoss": "mean_nonzero",
    "NTXentLoss": "mean_pairs",
    "ProxyNCALoss": "mean_nonzero",
    "SupConLoss": "mean_nonzero",
}


class ProxyModule(LossModule):
    """A loss against proxies, which are a parameter: one for each of the labels 0 … C − 1."""

    def __init__(
        self,
        function: Callable[..., Any],
        num_classes: int,
        embedding_size: int,
        *,
        learn: Sequence[str] = (),
        **arguments: Any,
    ) -> None:
        super().__init__(function, learn=learn, **arguments)
        sizes = (
            count("num_classes", num_classes, 1, _MOST),
            count("embedding_size", embedding_size, 1, _MOST),
        )
        self.proxies = nn.Parameter(torch.empty(sizes))
        self._initialise(self.proxies)

    # As the authors of the losses draw them.
    @staticmethod
    def _initialise(proxies: Tensor) -> None:
        nn.init.normal_(proxies)

    def arguments(self) -> dict[str, Any]:
        """Collect the keywords that the function is called with, the proxies among them."""
        return {**super().arguments(), "proxies": self.proxies}

    def extra_repr(self) -> str:
        classes, size = self.proxies.shape
        shown = f"num_classes={classes}, embedding_size={size}", super().extra_repr()
        return ", ".join([text for text in shown if text])


class FanOutProxyModule(ProxyModule):
    """The same of the loss whose proxies are drawn by Kaiming's rule."""

    @staticmethod
    def _initialise(proxies: Tensor) -> None:
        nn.init.kaiming_normal_(proxies, mode="fan_out")


def class_name(function_name: str) -> str:
    """Name the class of a function: `info_nce_loss` is InfoNCELoss."""
    spelt = [_SPELT.get(word, word.capitalize()) for word in function_name.split("_")]
    name = "".join(spelt)
    return RENAMED.get(name, name)


def class_of(function: Callable[..., Any]) -> type[LossModule]:
    """Make the class of a loss."""
    signature, name = inspect.signature(function), class_name(function.__name__)
    base: type[LossModule] = LossModule
    sizes: tuple[str, ...] = ()
    if "proxies" in signature.parameters:
        base = FanOutProxyModule if name == "ProxyAnchorLoss" else ProxyModule
        sizes = "num_classes", "embedding_size"

    def __init__(self: Any, *args: Any, learn: Sequence[str] = (), **arguments: Any) -> None:
        given = {key: arguments.pop(key) for key in sizes if key in arguments}
        if len(args) > len(sizes):
            most = f"{', '.join(sizes)} alone" if sizes else "nothing"
            raise TypeError(f"{name} takes {most} by position; write the names of arguments")
        check_arguments(function, name, arguments, learn)
        base.__init__(self, function, *args, learn=learn, **given, **arguments)

    def forward(self: Any, *tensors: Tensor, **keywords: Any) -> Any:
        return base.forward(self, *tensors, **keywords)

    _sign(__init__, signature, sizes)
    parameters = [p for p in signature.parameters.values() if p.name != "proxies"]
    called = signature.replace(parameters=[_SELF, *parameters])
    forward.__signature__ = called  # type: ignore[attr-defined]
    texts = arguments(inspect.getdoc(function) or "", "Args")
    tensors = {p.name: texts[p.name] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    head = f"Call `pairops.{function.__name__}`; keywords go before the Module's."
    forward.__doc__ = _documented(head, function, tensors, {})
    methods = {"__init__": __init__, "forward": forward, "__module__": "pairops.nn"}
    return cast(
        type[LossModule], type(name, (base,), methods | {"__doc__": _described(function, sizes)})
    )


_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
_LEARN = inspect.Parameter(
    "learn", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=Sequence[str]
)


def _sign(method: Any, signature: inspect.Signature, sizes: tuple[str, ...]) -> None:
    counts = [
        inspect.Parameter(size, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
        for size in sizes
    ]
    keywords = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    method.__signature__ = inspect.Signature(
        [_SELF, *counts, _LEARN, *keywords], return_annotation=None
    )


def _described(function: Callable[..., Any], sizes: tuple[str, ...]) -> str:
    name = f"pairops.{function.__name__}"
    head = f"`{name}` as a Module, with that function's arguments and defaults."
    entries = {
        "num_classes": "an int of at least 1, the number of proxies.",
        "embedding_size": "an int of at least 1, D.",
        "learn": "names of arguments that are learned; see `LossModule`.",
    }
    shown = {key: text for key, text in entries.items() if key in (*sizes, "learn")}
    other = _OTHER_REDUCTION.get(class_name(function.__name__))
    differs = f'pytorch-metric-learning averages as reduction="{other}" does.'
    return _documented(head, function, shown, {"Differs from": differs} if other else {})


def _documented(
    head: str, function: Callable[..., Any], entries: dict[str, str], common: dict[str, str]
) -> str:
    """Write a docstring with these arguments, and the keywords of the function."""
    text, parameters = inspect.getdoc(function) or "", inspect.signature(function).parameters
    keywords = {
        key: entry
        for section in ("Args", "Keyword Args")
        for key, entry in arguments(text, section).items()
        if parameters[key].kind is inspect.Parameter.KEYWORD_ONLY
    }
    lines = [f"    {wrapped(f'{key}: {entry}')}" for key, entry in entries.items()]
    return documented("\n".join([head, "", "Args:", *lines]), keywords, common)
