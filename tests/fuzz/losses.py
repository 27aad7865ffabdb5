"""Area "losses": every loss × distance × relation × dtype × engine against its oracle."""

from random import Random
from typing import Any

from fuzz import batches
from fuzz.batches import batch
from support.loss_parameters import (  # fmt: skip
    AGAINST_PROXIES,
    LABELLED,
    ONE_SET,
    SIMILAR_ONLY,
    TWO_SETS,
    parameters,
)

IMPORTS = [
    "from fuzz.batches import centred, places",
    "from fuzz.formulas import against_proxies, exactly, labelled, two_sets, within_rule",
    "from support.named_cases import embeddings",
]
PLAIN = ["cpu", "blockwise", "dense"]
GPUS = ["cuda", "triton", "chunked"]
DISTANCES: list[dict[str, Any]] = [
    {"distance": "cosine"},
    {"distance": "dot"},
    *[
        {"distance": name, "normalize": normalize}
        for name in ("l2", "sqeuclidean", "snr")
        for normalize in (True, False)
    ],
]
# Numbers that are drawn anew, between these, at any order of magnitude.
NUMBERS = {
    "temperature": (0.01, 2.0), "scale": (0.5, 60.0), "margin": (0.02, 1.0), "alpha": (0.5, 40.0),
    "beta": (0.5, 60.0), "base": (0.1, 1.0), "gamma": (0.2, 60.0), "pos_margin": (0.1, 1.0),
    "neg_margin": (0.1, 2.0),
}  # fmt: skip
# The gradients of two calls are rounded before they are added: docs/numerics.md.
TWICE_ROUNDED = {
    "nt_xent_loss", "decoupled_softmax_loss", "ms_loss", "sms_loss", "soft_topk_loss",
    "smooth_ap_loss",
}  # fmt: skip
WIDE = ["torch.float32", "torch.float64"]
AVERAGED = {
    "contrastive_loss", "margin_loss", "binomial_deviance_loss", "nt_xent_loss",
    "decoupled_softmax_loss",
}  # fmt: skip


def settings(random: Random, name: str) -> dict[str, Any]:
    params = dict(random.choice(parameters(name)))
    only_similar = name in SIMILAR_ONLY or "negatives" in params
    if random.random() < 0.4:
        params.pop("normalize", None)
        params |= random.choice(DISTANCES[:2] if only_similar else DISTANCES)
    if params.get("distance") == "dot":
        params.pop("normalize", None)
    for number in sorted(set(params) & set(NUMBERS)):
        if random.random() < 0.5 and isinstance(params[number], float):
            low, high = NUMBERS[number]
            params[number] = round(low * (high / low) ** random.random(), 4)
    if name == "smooth_ap_loss":  # the rounding of a positive's own pair: docs/numerics.md
        params["temperature"] = max(params.get("temperature", 0), 0.2)
    if name == "soft_topk_loss":  # where references are far from a threshold: docs/numerics.md
        params |= {"alpha": min(params.get("alpha", 2.0), 4.0), "temperature": 0.5}
    # The same of numbers without a bound.
    free = params.get("normalize") is False or params.get("distance") in ("dot", "snr")
    if name in ("smooth_ap_loss", "soft_topk_loss") and free:
        params.pop("normalize", None)
        params.pop("distance", None)
    if "temperature" not in params and name in ("supcon_loss", "info_nce_loss", "nt_xent_loss"):
        params["temperature"] = random.choice([0.5, 0.1, 0.02])
    return params


def plain(params: dict[str, Any]) -> bool:
    """Is a distance compared, whose slopes blow up near 0, or is it of unbounded rows?"""
    return params.get("distance", "cosine") != "cosine"


def engines(random: Random) -> list[str]:
    return [random.choice(GPUS)] if random.random() < 0.08 else PLAIN


def draw(random: Random) -> list[str]:
    way = random.choices([_labelled, _in_float64, _proxies, _near_proxies, _two], [5, 3, 2, 0.5, 3])
    return [*IMPORTS, *way[0](random)]


def _labelled(random: Random) -> list[str]:
    name = random.choice(LABELLED)
    params, served = settings(random, name), engines(random)
    dtypes = batches.DTYPES if served is PLAIN else batches.DTYPES[4:]  # GPUs' sum in float32
    dtype = random.choice([z for z in dtypes if name not in TWICE_ROUNDED or z in WIDE])
    twice = name in TWICE_ROUNDED and dtype != "torch.float64"
    made = batch(
        random, dtype=dtype, plain=plain(params) or _distant(name) or twice,
        alone=name in ONE_SET, most=24 if served is PLAIN else 16,
    )  # fmt: skip
    if name in ONE_SET:
        made.keywords = {}
    return [*made.lines, f"within_rule({made.call(name, params)}, {served})"]


def _distant(name: str) -> bool:
    return name in (
        "lifted_structure_loss", "margin_loss", "nca_loss", "n_pair_loss", "soft_topk_loss"
    )  # fmt: skip


def _in_float64(random: Random) -> list[str]:
    """Reductions, weights, learned numbers, second derivatives."""
    name = random.choice(LABELLED)
    params = settings(random, name)
    made = batch(random, dtype="torch.float64", plain=True, alone=name in ONE_SET, most=12)
    if name in ONE_SET:
        made.keywords = {}
    further: dict[str, str] = {}
    if random.random() < 0.7:
        ways = ["mean", "mean_nonzero", "sum", "none", *["mean_pairs"] * (name in AVERAGED)]
        further["reduction"] = repr(random.choice(ways))
        if random.random() < 0.5:
            further["weight"] = "torch.rand(len(x), dtype=torch.float64)"
    numbers = [k for k, v in params.items() if isinstance(v, float) and k != "epsilon"]
    if numbers and random.random() < 0.5:
        further["learn"] = repr(random.choice(numbers))
    constant = name in ("circle_loss", "tal_loss")  # weights are held
    twice = random.random() < 0.3 and not constant
    call = made.call(name, params, **further)
    return [*made.lines, f"exactly({call}, {random.choice(PLAIN)!r}, twice={twice})"]


def _proxies(random: Random) -> list[str]:
    name = random.choice(AGAINST_PROXIES)
    params = settings(random, name)
    dtype = random.choice(batches.DTYPES)
    n, d, count = random.randint(0, 24), random.choice([3, 9, 16]), random.randint(1, 12)
    distant = plain(params) or "distance" not in params
    lines = [
        f"labels = torch.randint(0, {count}, ({n},))",
        f"x = {batches.rows(random, str(n), d, dtype, 'labels', distant)}",
        f"proxies = {batches.rows(random, str(count), d, dtype, plain=distant)}",
    ]
    if random.random() < 0.3:
        lines.insert(1, "labels[torch.rand(len(labels)) < 0.2] = -100")
    call = f"against_proxies({name!r}, {params}, x, labels, proxies)"
    return [*lines, f"within_rule({call}, {engines(random)})"]


def _near_proxies(random: Random) -> list[str]:
    """Proxies of different classes that nearly coincide: weights of opposite sign cancel."""
    d, near = random.choice([16, 64]), random.choice([2e-3, 1e-2, 3e-2])
    name, dtype = random.choice(AGAINST_PROXIES), random.choice(["torch.bfloat16", "torch.float16"])
    sharpness = "alpha" if name == "proxy_anchor_loss" else "scale"
    params = {sharpness: random.choice([6.0, 18.0]), "distance": "cosine"}
    return [
        "labels = torch.arange(20) % 2",
        f"x = torch.randn(20, {d}).to({dtype})",
        f"proxies = (torch.randn(1, {d}) + {near} * torch.randn(2, {d})).to({dtype})",
        f"compared = against_proxies({name!r}, {params}, x, labels, proxies)",
        f"within_rule(compared, {[*PLAIN, random.choice(GPUS)]})",
    ]


def _two(random: Random) -> list[str]:
    name = random.choice(TWO_SETS)
    params = settings(random, name)
    dtype = random.choice(WIDE if name in TWICE_ROUNDED else batches.DTYPES)
    n, d = random.choice([0, 1, 2, *[random.randint(3, 24)] * 8]), random.choice([3, 9, 16])
    attends = name == "tal_loss"
    if attends and params.get("distance") == "snr":
        dtype = "torch.float64"  # docs/numerics.md
    if attends and random.random() < 0.5:
        n, d = random.randint(2, 5), random.choice([3, 4])
    usual = plain(params) or (  # docs/numerics.md
        name in ("tal_loss", "hard_negative_info_nce_loss") and dtype != "torch.float64"
    )
    lines = [f"{z} = {batches.rows(random, str(n), d, dtype, plain=usual)}" for z in ("x", "y")]
    if random.random() < 0.4 and not (usual and not plain(params)):
        noise = random.choice([0.5, 0.1, 0.02])
        lines[1] = f"y = (x.float() + {noise} * torch.randn({n}, {d})).to({dtype})"
    told = ""
    if name == "info_nce_loss" and random.random() < 0.3:
        more = random.randint(1, 9)
        lines.append(f"y = torch.cat([y, torch.randn({more}, {d}).to({dtype})])")
    if attends:
        told = f", labels=torch.randint(0, {random.randint(1, max(n, 1))}, ({n},))"
    return [*lines, f"within_rule(two_sets({name!r}, {params}, x, y{told}), {engines(random)})"]
