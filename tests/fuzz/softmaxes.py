"""Area "softmax": losses that are log-sum-exps minus a positive, beside float32 cross_entropy."""

import contextlib
from collections.abc import Callable, Iterator
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

import pairops
from fuzz.finding import Skipped
from fuzz.formulas import FAR
from fuzz.neighbours import confirmed
from support.sharp_softmax import OURS, N, plain

IMPORTS = ["from fuzz.softmaxes import as_cross_entropy, several_positives"]
ENGINES = ["cpu", "blockwise", "dense"]


def draw(random: Random) -> list[str]:
    engine = repr(random.choice(ENGINES))
    d, temperature = random.choice([4, 16, 32]), random.choice([0.2, 0.07, 0.02, 0.01, 0.005])
    if random.random() < 0.3:
        classes, count = random.randint(2, 8), random.choice([2, 3, 5, 8])
        noise = random.choice([1.0, 0.1, 0.03, 0.01])
        return [
            *IMPORTS,
            f"labels = torch.arange({classes}).repeat({count})",
            f"x = torch.randn({classes}, {d}).repeat({count}, 1)",
            f"x = x + {noise} * torch.randn({classes * count}, {d})",
            f"several_positives(x, labels, {temperature}, {engine})",
        ]
    name = random.choice(list(OURS))
    n = N if name == "n_pair" else random.choice([2, 8, 30, 64])
    if random.random() < 0.4:
        common, least = 2 ** random.choice([6, 10, 14, 20, 24]), random.choice([2, 3])
        return [
            *IMPORTS,
            f"x, y = torch.randint(0, {least}, (2, {n}, 6)).float()",
            f"x, y = (torch.cat([z, torch.full(({n}, 1), {common}**0.5)], 1) for z in (x, -y))",
            f"as_cross_entropy({name!r}, x, y, 1.0, 'dot', {engine})",
        ]
    noise, near = random.choice([3.0, 0.3, 0.1, 0.03]), random.choice([0.2, 0.6, 2.0])
    return [
        *IMPORTS,
        f"y = torch.randn({n}, {d})",
        f"y[1::2] = y[:{n - n % 2}:2] + {near} * torch.randn({n // 2}, {d})",
        f"x = y + {noise} * torch.randn({n}, {d})",
        f"as_cross_entropy({name!r}, x, y, {temperature}, 'cosine', {engine})",
    ]


def _orders(d: int) -> list[Tensor]:
    """Of features: one product that is rounded luckily is no yardstick."""
    stored = torch.arange(d)
    return [stored, stored.flip(0), stored.roll(d // 2), stored.roll(3), stored.roll(-5)]


def as_cross_entropy(
    name: str, x: Tensor, y: Tensor, temperature: float, distance: str, engine: str
) -> None:
    def by_hand(a: Tensor, b: Tensor) -> Tensor:
        return plain(name, a, b, temperature, distance)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return OURS[name](a, b, temperature, distance)

    if distance == "dot":  # whole numbers, all exact: no neighbour is
        _check(ours, by_hand, [x, y], engine)
        return
    units = [F.normalize(z.double(), dim=1) for z in (x, y)]
    logits = units[0] @ units[1].T / temperature
    own = logits.diagonal()
    above = max(float((logits - own).max()), float((logits - own[:, None]).max()))
    with _said_of_far_positives(above):
        confirmed(lambda both: _check(ours, by_hand, both, engine), [x, y])


def several_positives(x: Tensor, labels: Tensor, temperature: float, engine: str) -> None:
    """supcon_loss beside what `log_softmax` gives."""
    positive = (labels[:, None] == labels) & ~torch.eye(len(x), dtype=torch.bool)

    def by_hand(a: Tensor) -> Tensor:
        a = F.normalize(a, dim=1)
        own = torch.eye(len(a), dtype=torch.bool)
        logs = (a @ a.T / temperature).masked_fill(own, -torch.inf).log_softmax(1)
        return -(logs.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()

    def ours(a: Tensor) -> Tensor:
        return pairops.supcon_loss(a, labels, temperature=temperature)

    unit = F.normalize(x.double(), dim=1)
    logits = unit @ unit.T / temperature
    nearest = logits.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    above = (logits - nearest).fill_diagonal_(0).max()
    with _said_of_far_positives(float(above)):
        confirmed(lambda rows: _check(ours, by_hand, rows, engine), [x])


@contextlib.contextmanager
def _said_of_far_positives(above: float) -> Iterator[None]:
    """above: how far others are above an anchor's positive, in temperatures."""
    try:
        yield
    except AssertionError as error:
        if above > FAR:
            raise Skipped("a positive is far below others") from error
        raise


def _measured(run: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    leaves = [z.detach().clone().requires_grad_() for z in tensors]
    value = run(*leaves)
    return value.detach().double(), torch.cat(torch.autograd.grad(value, leaves)).double()


def _check(
    ours: Callable[..., Tensor], by_hand: Callable[..., Tensor], tensors: list[Tensor], engine: str
) -> None:
    with pairops.engine(engine):
        mine = _measured(ours, tensors)
    truth = _measured(by_hand, [z.double() for z in tensors])
    if float(truth[0]) < 1e-13:
        raise Skipped("the formula has no digits left")
    orders = _orders(tensors[0].shape[1])
    theirs = [_measured(lambda *z, o=o: by_hand(*[a[:, o] for a in z]), tensors) for o in orders]
    for k, what in enumerate(("value", "gradient")):
        by_torch = max(float((found[k] - truth[k]).abs().max()) for found in theirs)
        bound = 2 * by_torch + 4 * 2**-23 * float(truth[k].abs().max())
        error = float((mine[k] - truth[k]).abs().max())
        assert error <= bound, f"{what}: error {error:.3g} > {bound:.3g}, torch has {by_torch:.3g}"
