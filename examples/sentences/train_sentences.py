"""A real encoder learns to find code by its docstring, in batches of 32 and of 1,024 pairs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# Pairs, their ranks and the options come from the example beside this one.
sys.path.append(str(Path(__file__).parents[1] / "code_search"))

import head
from docstrings import Pair
from encoder import Encoder, Side, faster_in_bf16
from fine_tuning import BATCHES, fine_tune, ranks_of
from hashed_text import PIECE
from head import Embedded, Head, ranks_behind, train_heads
from measures import Ranks, mean, table
from options import parse as options_of
from ranking import ranks_by_words
from scipy.sparse import csr_array
from sentences_picture import draw
from sklearn.feature_extraction.text import TfidfVectorizer
from splits import Splits, splits_of
from step_memory import growth
from torch import Tensor
from tqdm import tqdm

# Those that `--tune` tries on seed 0, and of them the best on the validation pairs, by MRR.
RATES = {32: (2e-5, 5e-5, 1e-4, 2e-4), 1024: (3e-5, 6e-5, 1e-4, 2e-4, 3e-4)}
RATE = {32: 1e-4, 1024: 1e-4}
HEAD_RATES = {
    32: (1e-4, 3e-4, 1e-3),
    256: (3e-4, 1e-3, 3e-3),
    1024: (1e-3, 3e-3, 1e-2),
    8192: (3e-3, 6e-3, 1e-2),
}
HEAD_RATE = {32: 3e-4, 256: 1e-3, 1024: 3e-3, 8192: 6e-3}
KEYWORDS_BATCH = 1024
LARGE_MEMORY = 256  # pairs of a plain step that still fits where a step of 1,024 may not


def found_by_words(training: Sequence[Pair], test: Sequence[Pair]) -> Tensor:
    """The ranks by TF-IDF, of the parts of identifiers that both sides have in common."""
    words = TfidfVectorizer(
        tokenizer=lambda text: [piece.lower() for piece in PIECE.findall(text)],
        token_pattern=None,
        lowercase=False,
        sublinear_tf=True,
    )
    words.fit([text for pair in training for text in (pair.docstring, pair.code)])
    docstrings = words.transform([pair.docstring for pair in test])
    codes = words.transform([pair.code for pair in test])
    return ranks_by_words(csr_array(docstrings), csr_array(codes))


def embedded(encoder: Encoder, side: Side, name: str) -> Embedded:
    docstrings = encoder.embed(side.docstrings, f"{name}, docstrings")
    return Embedded(docstrings, encoder.embed(side.codes, f"{name}, code"), side.names)


def tune(
    training: Side,
    validation: Side,
    sides: dict[str, Embedded],
    options: argparse.Namespace,
) -> None:
    """Print what each rate comes to on the validation pairs, and the best of each batch."""
    print(f"{'':<32}{'rate':>10}{'MRR on validation':>20}", flush=True)

    def best(name: str, rates: Sequence[float], ranks_with: Callable[[float], Tensor]) -> float:
        found = {}
        for rate in rates:
            found[rate] = mean([ranks_with(rate)], "MRR").value
            print(f"{name:<32}{rate:>10g}{found[rate]:>20.4f}", flush=True)
        return max(found, key=found.__getitem__)

    def of_head(size: int, rate: float) -> Tensor:
        heads = train_heads(sides["training"], size, rate, seed=0)
        return ranks_behind(heads, sides["validation"])

    def of_encoder(size: int, rate: float) -> Tensor:
        run = fine_tune(training, options.pairs, size, rate, 0, options.bf16)
        return ranks_of(run.encoder, validation)

    heads = {
        size: best(f"head, batch {size:,}", HEAD_RATES[size], partial(of_head, size))
        for size in head.PASSES
    }
    encoders = {
        size: best(f"fine-tuned, batch {size:,}", RATES[size], partial(of_encoder, size))
        for size in BATCHES
    }
    print(f"\nRATE = {encoders}\nHEAD_RATE = {heads}")


def memory_of(bf16: bool) -> dict[str, float]:
    """MiB that a step adds in a process of its own, by what it is."""
    small, large = LARGE_MEMORY, BATCHES[-1]
    rows = max(head.PASSES)
    asked = {
        f"plain step, {small:,} pairs": ("plain step", small),
        f"cached_step, {small:,} pairs": ("cached step", small),
        f"cached_step, {large:,} pairs": ("cached step", large),
        f"torch's matrix, {rows:,} pairs": ("torch loss", rows),
        f"info_nce_loss, {rows:,} pairs": ("pairops loss", rows),
    }
    return {
        name: growth(kind, rows, bf16)
        for name, (kind, rows) in tqdm(asked.items(), desc="memory", unit="process")
    }


def head_ranks(
    sides: dict[str, Embedded], size: int, seeds: int, **keywords: bool | float | None
) -> Ranks:
    found = []
    for seed in range(seeds):
        heads = train_heads(sides["training"], size, HEAD_RATE[size], seed, **keywords)
        found.append(ranks_behind(heads, sides["test"]))
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=4096, help="pairs to fine-tune on")
    parser.add_argument("--head-pairs", type=int, default=16384, help="pairs for the heads")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="try learning rates on the validation pairs, and end: what this file's RATE and "
        "HEAD_RATE were taken from",
    )
    options = options_of(parser, "sentences.png", arguments)
    if options.pairs < BATCHES[-1]:
        parser.error(f"--pairs must be {BATCHES[-1]:,} or more, a batch, not {options.pairs:,}")
    if options.head_pairs < max(head.PASSES):
        parser.error(
            f"--head-pairs must be {max(head.PASSES):,} or more, a batch, "
            f"not {options.head_pairs:,}"
        )
    if options.seeds < 1:
        parser.error(f"--seeds must be 1 or more, not {options.seeds}")
    return options


def prepared(options: argparse.Namespace) -> Splits:
    splits = splits_of(options.folders)
    wanted = max(options.pairs, options.head_pairs)
    if len(splits.training) < wanted or not splits.validation or len(splits.test) < 2:
        sys.exit(
            f"{wanted:,} pairs for training are wanted, and {len(splits.training):,} were found, "
            f"{len(splits.validation):,} to choose by and {len(splits.test):,} for the test; "
            "name more --folders, or lower --pairs and --head-pairs"
        )
    print(
        f"{options.pairs:,} pairs to fine-tune on, of {len(splits.training):,}, "
        f"{options.head_pairs:,} for heads; of other files, {len(splits.validation):,} to choose "
        f"learning rates by and {len(splits.test):,} for the test"
    )
    return splits


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    splits = prepared(options)
    options.bf16 = faster_in_bf16()
    encoder = Encoder(options.bf16)
    print(f"forward and backward passes run in {'bfloat16' if options.bf16 else 'float32'}")
    training = encoder.side_of(splits.training[: max(options.pairs, options.head_pairs)])
    test = encoder.side_of(splits.test)
    sides = {"training": embedded(encoder, training[: options.head_pairs], "training")}
    if options.tune:
        validation = encoder.side_of(splits.validation)
        sides["validation"] = embedded(encoder, validation, "validation")
        tune(training, validation, sides, options)
        return
    sides["test"] = embedded(encoder, test, "test")

    found: dict[str, Ranks] = {}
    found["shared words (TF-IDF)"] = [found_by_words(splits.training, splits.test)]
    found["before training"] = [ranks_behind((Head(), Head()), sides["test"])]
    curves, seconds = {}, {}
    for size in BATCHES:
        found[f"fine-tuned, batch {size:,}"] = ranks = []
        for seed in range(options.seeds):
            run = fine_tune(training, options.pairs, size, RATE[size], seed, options.bf16)
            ranks.append(ranks_of(run.encoder, test))
            curves.setdefault(size, run.curve)
            seconds.setdefault(size, run.step_seconds)
    heads = {size: head_ranks(sides, size, options.seeds) for size in head.PASSES}
    small, large = (f"fine-tuned, batch {size:,}" for size in BATCHES)
    found |= {f"head, batch {size:,}": ranks for size, ranks in heads.items()}
    few, many = (f"head, batch {size:,}" for size in (min(head.PASSES), KEYWORDS_BATCH))
    without = {
        "  without ids": {"ids": False},
        "  without false_negatives": {"margin": None},
        "  without both": {"ids": False, "margin": None},
    }
    for name, keywords in without.items():
        found[name] = head_ranks(sides, KEYWORDS_BATCH, options.seeds, **keywords)
    compared = [(large, small), (many, few), *((many, name) for name in without)]
    memory = memory_of(options.bf16)

    print(table(found, compared))
    print()
    for size in BATCHES:
        print(
            f"batch {size:,}: {len(curves[size])} steps, {size / seconds[size]:.0f} pairs a second"
        )
    for name, mib in memory.items():
        print(f"{name:<32}{mib:>10,.0f} MiB")
    title = f"MiniLM finds the code of {len(splits.test):,} docstrings of unseen files"
    shown = {name: ranks for name, ranks in found.items() if not name.startswith("  ")}
    draw(options.output, title, curves, shown, heads, memory)
    print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main()
