"""Several labels for each text: docstrings come near whose functions use the same identifiers."""

import argparse
import functools
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from docstrings import Pair, read, split, without_doubles
from hashed_text import BUCKETS, Bags, counted, rarity, weighted
from options import parse as options_of
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from ways_picture import draw_ways

from pairops import supcon_loss

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,}")
LEAST, MOST_SHARE = 40, 0.005  # functions of the training that use an identifier which is a label
LABELS = 6  # of a function at most, the rarest: `self` says nothing
WIDTH = 256
LEARNING_RATE = 2e-3
TEMPERATURE = 0.1
THINNED = 0.5
NEAREST = 10


def labels_of(training: Sequence[Pair], test: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N, C) and (N', C) bool, which identifiers are labels of a function, and (C,) int64,
    how many functions of the training use each; the rarest stand first."""
    used = [set(IDENTIFIER.findall(pair.code)) for pair in (*training, *test)]
    met = Counter(name for names in used[: len(training)] for name in names)
    most = MOST_SHARE * len(training)
    known = sorted((n, name) for name, n in met.items() if LEAST <= n <= most)
    column = {name: k for k, (_, name) in enumerate(known)}
    labels = torch.zeros(len(used), len(known), dtype=torch.bool)
    for row, names in enumerate(used):
        chosen = sorted(column[name] for name in names if name in column)[:LABELS]
        labels[row, chosen] = True
    return (*labels.split([len(training), len(test)]), torch.tensor([n for n, _ in known]))


def rarest(labels: Tensor) -> Tensor:
    """(N,): the first label of each row."""
    return labels.int().argmax(1)


def drawn(labels: Tensor) -> Tensor:
    """(N,): one of the labels of each row, by chance."""
    return torch.multinomial(labels.float(), 1)[:, 0]


Way = Callable[[Tensor, Tensor], Tensor]
supcon = functools.partial(supcon_loss, temperature=TEMPERATURE)
WAYS: dict[str, Way] = {
    "one label, the rarest": lambda x, labels: supcon(x, rarest(labels)),
    "one label, drawn anew": lambda x, labels: supcon(x, drawn(labels)),
    "several labels": supcon,
    "by shared labels": functools.partial(supcon, positive_weight="shared"),
    "by overlap (Jaccard)": functools.partial(supcon, positive_weight="jaccard"),
}


class Texts(torch.nn.Module):
    """A text as WIDTH numbers: the weighted sum of what its words stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", include_last_offset=True)
        torch.nn.init.normal_(self.words.weight, std=WIDTH**-0.5)

    def forward(self, bags: Bags) -> Tensor:
        return self.words(bags.entries, bags.ends, per_sample_weights=bags.weights)


def overlaps(labels: Tensor, others: Tensor) -> Tensor:
    """(N, M): how many labels two rows share, of those that either has."""
    mine, theirs = labels.float(), others.float()
    shared = mine @ theirs.T
    return shared / (mine.sum(1)[:, None] + theirs.sum(1) - shared).clamp(min=1)


def gains(embeddings: Tensor, labels: Tensor) -> Tensor:
    """(N,): discounted cumulative gain of each row's nearest others, of the best that there is.

    The gain of a text is the overlap of its labels with those of the query (NDCG).
    """
    unit, found = normalize(embeddings), []
    discount = 1 / torch.log2(torch.arange(NEAREST) + 2.0)
    for rows in torch.arange(len(unit)).split(1024):
        own = rows[:, None] == torch.arange(len(unit))
        gain = overlaps(labels[rows], labels).masked_fill(own, 0.0)
        order = (unit[rows] @ unit.T).masked_fill(own, -torch.inf).topk(NEAREST).indices
        best = gain.topk(NEAREST).values @ discount
        reached = gain.gather(1, order) @ discount
        found.append(torch.where(best > 0, reached / best, torch.nan))
    everyone = torch.cat(found)
    return everyone[~everyone.isnan()]  # without texts that share a label with nobody


def train(bags: Bags, labels: Tensor, way: Way, seed: int, options: argparse.Namespace) -> Texts:
    torch.manual_seed(seed)
    texts = Texts()
    optimizer = torch.optim.Adam(texts.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for _ in tqdm(range(options.steps), unit="step", leave=False):
        rows = torch.randperm(len(labels))[: options.batch]
        optimizer.zero_grad()
        here = labels[rows]
        here = here[:, here.any(0)]  # of thousands a batch has some hundreds
        way(texts(bags.chosen(rows).thinned(THINNED)), here).backward()
        optimizer.step()
        schedule.step()
    return texts.eval()


def table(found: dict[str, list[float]], seconds: dict[str, float]) -> str:
    lines = [f"{'':<24}{f'NDCG@{NEAREST}':>10}{'lowest':>10}{'highest':>10}{'seconds':>10}"]
    for name, values in found.items():
        numbers = f"{statistics.mean(values):>10.4f}{min(values):>10.4f}{max(values):>10.4f}"
        took = f"{seconds[name]:>10.1f}" if name in seconds else ""
        lines.append(f"{name:<24}{numbers}{took}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150, help="steps of each training")
    parser.add_argument("--batch", type=int, default=1024, help="texts a step")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way")
    options = options_of(parser, "shared_identifiers.png", arguments)
    for name in ("steps", "batch", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, not {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    training, test = split(without_doubles(read(options.folders)))
    mine, theirs, used = labels_of(training, test)
    labelled = [labels.any(1).nonzero()[:, 0] for labels in (mine, theirs)]
    bags = [
        counted([half[k].docstring for k in rows.tolist()])
        for half, rows in zip((training, test), labelled, strict=True)
    ]
    rare = rarity(bags[0])
    seen, unseen = (weighted(side, rare) for side in bags)
    mine, theirs = mine[labelled[0]], theirs[labelled[1]]
    print(
        f"{len(mine):,} docstrings for training, {len(theirs):,} of files that training has not "
        f"seen; {len(used):,} labels, {mine.sum(1).double().mean():.1f} for each"
    )
    found: dict[str, list[float]] = {}
    torch.manual_seed(0)
    found["by chance"] = [gains(torch.randn(len(theirs), WIDTH), theirs).mean().item()]
    dense = torch.from_numpy(unseen.matrix().toarray())
    found["shared words (TF-IDF)"] = [gains(dense, theirs).mean().item()]
    seconds: dict[str, float] = {}
    for name, way in WAYS.items():
        began = time.perf_counter()
        found[name] = []
        for seed in range(options.seeds):
            texts = train(seen, mine, way, seed, options)
            with torch.no_grad():
                found[name].append(gains(texts(unseen), theirs).mean().item())
        seconds[name] = (time.perf_counter() - began) / options.seeds
    print(table(found, seconds))
    title = f"Docstrings whose functions share identifiers: NDCG@{NEAREST}"
    draw_ways(options.output, title, found)
    print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main()
