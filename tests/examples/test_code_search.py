"""The code search: the pairs it reads, what it counts as found, and what a short training does."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.nn.functional import normalize

from support.project import EXAMPLES

VERBS = ("count", "merge", "print", "rotate", "encode", "sort", "delete", "shuffle")
NOUNS = ("apples", "rivers", "matrices", "letters", "clocks", "bridges", "planets", "spoons")
# What the code says instead: nothing is found by a shared word.
SYNONYMS = dict(zip((*VERBS, *NOUNS), (f"qx{i}{i}zw" for i in range(16)), strict=True))


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "code_search")


@pytest.fixture
def docstrings() -> ModuleType:
    return importlib.import_module("docstrings")


@pytest.fixture
def hashed_text() -> ModuleType:
    return importlib.import_module("hashed_text")


@pytest.fixture
def ranks() -> ModuleType:
    return importlib.import_module("ranking")


@pytest.fixture
def train_code_search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("train_code_search")
    monkeypatch.setattr(
        importlib.import_module("towers"), "WIDTH", 32
    )  # of a table of 2 ** 16 rows
    return module


def function(docstring: str, code: str, name: str = "work") -> str:
    return f'def {name}(a):\n    """{docstring}"""\n    {code}\n'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """64 functions in as many files, each about one verb and one noun."""
    folder = tmp_path / "package"
    folder.mkdir()
    for verb in VERBS:
        for noun in NOUNS:
            code = f"return {SYNONYMS[verb]}({SYNONYMS[noun]}, one, two, three, four)"
            text = function(f"Will {verb} all of the {noun}.", code, f"f_{verb}")
            (folder / f"{verb}_{noun}.py").write_text(text)
    return folder


def test_a_pair_is_the_first_sentence_and_the_code_without_the_name(
    docstrings: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "one.py").write_text(
        "class A:\n"
        "    @property\n"
        "    def walk(self):\n"
        '        """Go through all\n'
        "        of the nodes, e.g. of a tree. And more.\n\n"
        "        At length.\n"
        '        """\n'
        "        for one in walk.all(self, a, b, c):\n"
        "            yield one.walk()  # walks\n"
    )
    (pair,) = docstrings.read([tmp_path])
    assert pair.docstring == "Go through all of the nodes, e.g. of a tree."
    assert pair.code == "        for one in .all(self, a, b, c):\n            yield one.()  # walks"
    assert (pair.name, pair.file, pair.line) == ("walk", "one.py", 3)


@pytest.mark.parametrize(
    "text",
    [
        function("Says too little.", "return a + b + c + d + e + f"),
        function("Says enough, and does too little.", "return a"),
        'def work(a):\n    """Has nothing but a docstring."""\n',
        'def work(a):\n    """Has all in one line."""; return a + b + c + d + e + f\n',
        "def work(a):\n    return a + b + c + d + e + f\n",
    ],
)
def test_what_is_no_pair(docstrings: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "one.py").write_text(text)
    assert docstrings.read([tmp_path]) == []


def test_files_that_cannot_be_read_are_skipped(docstrings: ModuleType, tmp_path: Path) -> None:
    good = function("Adds all of the letters.", "return a + b + c + d + e + f")
    (tmp_path / "bad_syntax.py").write_text('"""x"""\ndef (:\n')
    (tmp_path / "latin.py").write_bytes(good.replace("letters", "lättärs").encode("latin-1"))
    (tmp_path / "null.py").write_bytes(b'"""x"""\0' + good.encode())
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "deep.py").write_text('"""x"""\n' + "-" * 200_000 + "1\n")
    (tmp_path / "escape.py").write_text(good.replace("letters", r"le\d\d\ders"))  # a warning
    (tmp_path / "marked.py").write_bytes(b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode())
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(good)
    assert [pair.file for pair in docstrings.read([tmp_path])] == ["escape.py", "marked.py"]


def test_doubles_of_either_side_are_dropped(docstrings: ModuleType) -> None:
    def pair(docstring: str, code: str) -> object:
        return docstrings.Pair(docstring, code, "f", "a/b.py", 1)

    first, other = pair("Adds a to b.", "return a + b"), pair("Takes b off a.", "return b, a")
    same_docstring = pair("adds `a` to b", "return sum(a, b)")
    same_code = pair("Joins a and b.", "return  a  + b")
    pairs = [first, same_docstring, same_code, other, first]
    assert docstrings.without_doubles(pairs) == [first, other]


def test_no_file_nor_its_copy_is_on_both_sides(docstrings: ModuleType) -> None:
    files = [f"p{k % 7}/f{k}.py" for k in range(400)]
    pairs = [
        docstrings.Pair(f"docstring {k}", f"code {k}", "f", prefix + file, k)
        for k, file in enumerate(files)
        for prefix in ("", "pip/_vendor/")
    ]
    training, test = docstrings.split(pairs)
    assert docstrings.split(pairs) == (training, test)
    assert sorted([*training, *test], key=pairs.index) == pairs
    assert not {pair.group for pair in training} & {pair.group for pair in test}
    assert 0.06 < len(test) / len(pairs) < 0.2


def test_installed_packages_are_found_in_the_same_order_twice(docstrings: ModuleType) -> None:
    folders = docstrings.installed()
    found = docstrings.sources(folders)
    names = {name for name, _ in found}
    assert {"argparse.py", "torch/nn/functional.py"} <= names
    assert len({path for _, path in found}) == len(found)
    assert docstrings.sources(folders) == found


def test_ranks_by_hand_and_in_blocks(ranks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = csr_array(
        [
            [5.0, 1, 2, 4],
            [3.0, 3, 1, 9],  # one is higher, one as high
            [4.0, 9, 1, 2],
            [0.0, 0, 0, 0],
        ]
    )
    expected = [1, 3, 4, 4]
    for rows in (1, 3, 4, 9):
        monkeypatch.setattr(ranks, "ROWS", rows)
        assert ranks.ranks_by_words(similarity, csr_array(np.eye(4))).tolist() == expected
    assert ranks.recall(torch.tensor(expected), 3) == pytest.approx(2 / 4)


def test_ranks_of_bags_are_those_of_embeddings(
    ranks: ModuleType, train_code_search: ModuleType
) -> None:
    x, y = torch.randn(2, 50, 8).double()
    by_words = ranks.ranks_by_words(*(csr_array(normalize(z).numpy()) for z in (x, y)))
    assert torch.equal(by_words, train_code_search.found_by(x, y).codes)


def test_bags_are_of_length_one_and_know_their_place(hashed_text: ModuleType) -> None:
    texts = ["getHTTPResponse2", "", "get get get response", "of_no_such_thing at all"]
    counted = hashed_text.counted(texts)
    bags = hashed_text.weighted(counted, hashed_text.rarity(counted))
    lengths = torch.from_numpy(bags.matrix().power(2).sum(1))
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0, 1, 1]))
    shared = bags.matrix() @ bags.matrix().T
    assert shared[0, 2] > 0 == shared[0, 3]
    rows = torch.tensor([3, 1, 0])
    assert (bags.chosen(rows).matrix() != bags.matrix()[rows.numpy()]).nnz == 0
    thinned = bags.thinned(0.5)
    assert 0 < thinned.ends[-1] < bags.ends[-1]
    assert not (thinned.matrix() > bags.matrix()).nnz


@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_training_finds_what_no_shared_word_would(
    train_code_search: ModuleType, docstrings: ModuleType, package: Path, loss: str
) -> None:
    training, test = docstrings.split(docstrings.read([package]))
    assert len(test) >= 5
    options = train_code_search.parse(["--batch", "16", "--steps", "25"])
    sides = train_code_search.bags_of(training, test)
    run = train_code_search.fit(*sides, loss, options.seed, options)
    assert len(run.curve) == 25
    assert sum(run.curve[-5:]) < 0.8 * sum(run.curve[:5])
    mean_rank = run.after.codes.double().mean()
    assert mean_rank < 0.5 * (len(test) + 1) / 2
    assert mean_rank < run.before.codes.double().mean()


def test_it_prints_a_table_and_draws(
    train_code_search: ModuleType,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new" / "code_search.png"
    arguments = ["--folders", str(package), "--batch", "16", "--steps", "5"]
    train_code_search.main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    for line in ("shared words (TF-IDF)", "before training", "siglip: 5 steps of 16 pairs", "→ f_"):
        assert line in printed
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--seconds", "nan"], "--seconds must be above 0, not nan"),
        (["--batch", "1"], "--batch must be 2 or more, not 1"),
        (["--folders", "/no/such"], "--folders must name folders, and /no/such is none"),
        (["--output", "/"], "--output must name a file, and / is a folder"),
        (["--loss", "ms"], "invalid choice: 'ms'"),
    ],
)
def test_bad_options_are_refused(
    train_code_search: ModuleType,
    arguments: list[str],
    message: str,
    refusal: Callable[[ModuleType, list[str]], str],
) -> None:
    assert message in refusal(train_code_search, arguments)


def test_too_few_pairs_are_refused(train_code_search: ModuleType, package: Path) -> None:
    with pytest.raises(SystemExit, match=r"--batch is 2,048, and .* lower --batch"):
        train_code_search.main(["--folders", str(package)])


def test_keywords_of_info_nce_are_compared(
    train_code_search: ModuleType,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "keywords.png"
    arguments = ["--folders", str(package), "--batch", "16", "--steps", "2", "--loss", "keywords"]
    train_code_search.main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    for name in ("info_nce", "all directions", "false negatives", "names"):
        assert name in printed
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def shared_identifiers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("train_shared_identifiers")
    monkeypatch.setattr(module, "WIDTH", 32)
    monkeypatch.setattr(module, "LEAST", 2)
    monkeypatch.setattr(module, "MOST_SHARE", 0.5)
    return module


def test_labels_are_the_rarest_identifiers_that_several_functions_use(
    shared_identifiers: ModuleType, docstrings: ModuleType
) -> None:
    def pair(code: str) -> Any:
        return docstrings.Pair("", code, "", "", 0)

    training = [
        pair("read(name, rare)"),
        pair("read(name, rare)"),
        pair("read(name)"),
        pair("read"),
    ]
    training += [pair("self")] * 4
    mine, theirs, used = shared_identifiers.labels_of(training, [pair("rare(name, unknown)")])
    assert used.tolist() == [2, 3, 4, 4]  # rare, name, read, self
    assert mine[:4].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert theirs.int().tolist() == [[1, 1, 0, 0]]
    assert shared_identifiers.rarest(mine[:4]).tolist() == [0, 0, 1, 2]


def test_the_gain_is_that_of_the_best_order_at_most(
    shared_identifiers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.eye(4, dtype=torch.bool).repeat_interleave(3, 0)
    assert shared_identifiers.gains(labels.float(), labels).tolist() == [1.0] * 12
    monkeypatch.setattr(shared_identifiers, "NEAREST", 1)
    of_another_label = torch.eye(6).repeat(2, 1)  # row 0 is nearest to row 6
    assert shared_identifiers.gains(of_another_label, labels).tolist() == [0.0] * 12


def test_several_labels_are_learned(
    shared_identifiers: ModuleType,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "shared.png"
    arguments = ["--folders", str(package), "--batch", "16", "--steps", "20", "--seeds", "1"]
    shared_identifiers.main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    found = {line[:24].strip(): line[24:].split() for line in printed.splitlines() if line[24:]}
    assert float(found["several labels"][0]) > 1.5 * float(found["by chance"][0])
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["--folders", "/no/such"], "--folders must name folders, and /no/such is none"),
        (["--output", "/"], "--output must name a file, and / is a folder"),
    ],
)
def test_bad_options_of_shared_identifiers_are_refused(
    shared_identifiers: ModuleType,
    arguments: list[str],
    message: str,
    refusal: Callable[[ModuleType, list[str]], str],
) -> None:
    assert message in refusal(shared_identifiers, arguments)
