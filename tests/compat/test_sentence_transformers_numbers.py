"""pairops.compat.sentence_transformers against the package itself, and under its trainer."""

import copy
import itertools
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pairops
from pairops.compat.sentence_transformers import (
    LabelledLoss,
    MultipleNegativesRankingLoss,
    PairedLoss,
)
from support.on_cpu import device as device

# One process imports the package: that takes 5 seconds.
pytestmark = pytest.mark.xdist_group("sentence_transformers")

WORDS = [f"w{k}" for k in range(40)]
LABELS = torch.tensor([3, 1, 3, 1, 2, 2, 3, 7, 7, 1, 2, 3])


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Its losses. A model card would be looked up on the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("sentence_transformers.sentence_transformer.losses")


@pytest.fixture(scope="module")
def files(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers without dropout, and a vocabulary of 40 words."""
    del theirs
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(names))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(theirs: Any, files: Path) -> Any:
    del theirs
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    encoder = modules.Transformer(str(files))
    pooling = modules.Pooling(encoder.get_embedding_dimension())
    return SentenceTransformer(modules=[encoder, pooling], device="cpu").double()


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(count)]


def columns(model: Any, count: int, rows: int = 12) -> list[dict[str, Any]]:
    return [model.preprocess(texts(rows, seed)) for seed in range(count)]


def result(loss: nn.Module, features: list[dict[str, Any]], labels: Any) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient by all that it learns."""
    loss.zero_grad()
    value = loss([dict(each) for each in features], labels)
    value.backward()
    found = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
    return value.detach(), torch.cat(found)


def same(ours: nn.Module, other: nn.Module, features: Any, labels: Any = None) -> None:
    for found, expected in zip(
        result(ours, features, labels), result(other, features, labels), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("scale", [20.0, 7.0])
def test_multiple_negatives(theirs: Any, model: Any, count: int, scale: float) -> None:
    features, given = columns(model, count), {"temperature": 1 / scale}
    one_way = PairedLoss(model, pairops.info_nce_loss, symmetric=False, **given)
    same(one_way, theirs.MultipleNegativesRankingLoss(model, scale), features)
    ways = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    both = PairedLoss(model, pairops.info_nce_loss, **given)
    same(both, theirs.MultipleNegativesRankingLoss(model, scale, **ways), features)


DIRECTIONS = [
    ("query_to_doc", *further)
    for count in range(4)
    for further in itertools.combinations(("query_to_query", "doc_to_query", "doc_to_doc"), count)
]
HARDNESS = [None, "in_batch_negatives", "hard_negatives", "all_negatives"]


@pytest.mark.parametrize("partition", ["joint", "per_direction"])
@pytest.mark.parametrize("hardness", HARDNESS)
def test_multiple_negatives_with_all_its_arguments(
    theirs: Any, model: Any, hardness: str | None, partition: str
) -> None:
    """On embeddings: pairs, triplets and more hard negatives, and every set of directions."""
    within = {"query_to_query", "doc_to_doc"}
    for ways in DIRECTIONS:
        if partition == "per_direction" and within & {*ways}:
            continue
        given: dict[str, Any] = {"directions": ways, "partition_mode": partition}
        if hardness is not None:
            given |= {"hardness_mode": hardness, "hardness_strength": 9.0}
        for count in (2, 3, 4):
            columns = [torch.randn(7, 5, dtype=torch.float64) for _ in range(count)]
            leaves = [z.requires_grad_() for z in columns]
            ours = MultipleNegativesRankingLoss(model, 13.0, **given)._loss_of(columns, None)
            other = theirs.MultipleNegativesRankingLoss(model, 13.0, **given)
            expected = other.compute_loss_from_embeddings(columns, None)
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
            for one, two in zip(
                torch.autograd.grad(ours, leaves),
                torch.autograd.grad(expected, leaves),
                strict=True,
            ):
                torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_multiple_negatives_in_chunks_and_by_products(theirs: Any, model: Any) -> None:
    from sentence_transformers.util import dot_score

    given = {"directions": DIRECTIONS[-1], "similarity_fct": dot_score}
    ours = MultipleNegativesRankingLoss(model, 0.3, mini_batch_size=5, **given)
    same(ours, theirs.MultipleNegativesRankingLoss(model, 0.3, **given), columns(model, 3))
    inside = (
        theirs.MatryoshkaLoss(model, each, [16, 8])
        for each in (
            MultipleNegativesRankingLoss(model, mini_batch_size=5),
            theirs.MultipleNegativesRankingLoss(model),
        )
    )
    same(*inside, columns(model, 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"directions": ("doc_to_doc",)}, "query_to_doc must be one of them"),
        ({"directions": ("docs",)}, "directions is 'docs'; it must be one of query_to_doc"),
        ({"partition_mode": "both"}, "partition_mode is 'both'"),
        (
            {"directions": DIRECTIONS[-1], "partition_mode": "per_direction"},
            "must be 'joint' with them",
        ),
        ({"similarity_fct": "euclid"}, "similarity_fct is 'euclid'; it must be one of cos_sim"),
        ({"hardness_mode": "none"}, "hardness_mode is 'none'"),
        ({"hardness_strength": -1.0}, "hardness_strength is -1.0; it must be 0 or above"),
        ({"scale": 0.0}, "scale is 0.0; it must be a finite number above 0"),
    ],
)
def test_multiple_negatives_refuses(model: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultipleNegativesRankingLoss(model, **given)


@pytest.mark.parametrize(
    ("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.05), ("relative", 0.05)]
)
@pytest.mark.parametrize("count", [2, 3])
def test_a_guide(theirs: Any, model: Any, count: int, strategy: str, margin: float) -> None:
    """GISTEmbedLoss: pairs, and triplets with contrast_positives=False."""
    guide = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    features = columns(model, count)
    given = {"margin_strategy": strategy, "margin": margin, "contrast_positives": count == 2}
    expected = theirs.GISTEmbedLoss(model, guide, temperature=0.05, **given)
    value = expected([dict(each) for each in features], None)
    x, *docs = (model(dict(each))["sentence_embedding"] for each in features)
    with torch.no_grad():
        u, *v = (guide(dict(each))["sentence_embedding"] for each in features)
    ours = pairops.info_nce_loss(
        x, torch.cat(docs), temperature=0.05, partition="joint",
        directions=("xy", "xx", "yy") if count == 2 else ("xy", "xx"),
        guide=(u, torch.cat(v)), guide_margin=margin, guide_relative=strategy == "relative",
    )  # fmt: skip
    torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-11)
    weight = next(model.parameters())
    one, two = (torch.autograd.grad(z, weight)[0] for z in (ours, value))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_products(theirs: Any, model: Any) -> None:
    from sentence_transformers.util import dot_score

    expected = theirs.MultipleNegativesRankingLoss(model, 0.3, similarity_fct=dot_score)
    given = {"temperature": 1 / 0.3, "symmetric": False, "distance": "dot"}
    same(PairedLoss(model, pairops.info_nce_loss, **given), expected, columns(model, 3))


@pytest.mark.parametrize("levels", [1, 6, 1000])
def test_scored_pairs(theirs: Any, model: Any, levels: int) -> None:
    """CoSENTLoss on embeddings, with many equal scores, or one score, or none that are equal."""
    scores = torch.arange(60) * 7 % levels / 5
    leaves = [torch.randn(60, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    for scale in (20.0, 3.0):
        ours = pairops.cosent_loss(*leaves, scores, temperature=1 / scale)
        expected = theirs.CoSENTLoss(model, scale).compute_loss_from_embeddings(leaves, scores)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        for one, two in zip(
            torch.autograd.grad(ours, leaves),
            torch.autograd.grad(expected, leaves),
            strict=True,
        ):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


TRIPLETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "BatchHardTripletLoss": ({"margin": 5.0}, {"margin": 5.0}),
    "BatchHardSoftMarginTripletLoss": ({}, {"margin": 0.0, "soft": True}),
    "BatchAllTripletLoss": (
        {"margin": 0.4},
        {"margin": 0.4, "mining": "all", "reduction": "mean_pairs"},
    ),
    "BatchSemiHardTripletLoss": (
        {"margin": 0.4},
        {"margin": 0.4, "mining": "semihard", "reduction": "mean_pairs"},
    ),
}


@pytest.mark.parametrize("name", TRIPLETS)
def test_triplets(theirs: Any, model: Any, name: str) -> None:
    metric = theirs.BatchHardTripletLossDistanceFunction
    at, ours = TRIPLETS[name]
    for distance, given in (
        (metric.euclidean_distance, {"distance": "l2", "normalize": False}),
        (metric.cosine_distance, {"distance": "cosine"}),
    ):
        expected = getattr(theirs, name)(model, distance_metric=distance, **at)
        loss = LabelledLoss(model, pairops.triplet_loss, **ours, **given)
        same(loss, expected, columns(model, 1), LABELS)


def test_an_anchor_without_positives_counts_there(theirs: Any, model: Any) -> None:
    features, labels = columns(model, 1), LABELS.clone()
    labels[:] = torch.arange(12)
    loss = LabelledLoss(model, pairops.triplet_loss, margin=5, distance="l2", normalize=False)
    assert loss(features, labels) == 0
    assert theirs.BatchHardTripletLoss(model)(features, labels) > 0


@pytest.mark.parametrize("size", [5, 12, 100])
def test_chunks_have_the_numbers_of_the_whole(theirs: Any, model: Any, size: int) -> None:
    features, given = columns(model, 3), {"temperature": 0.05, "symmetric": False}
    loss = PairedLoss(model, pairops.info_nce_loss, mini_batch_size=size, **given)
    same(loss, PairedLoss(model, pairops.info_nce_loss, **given), features)
    cached = theirs.CachedMultipleNegativesRankingLoss(model, mini_batch_size=size)
    same(loss, cached, features)
    labelled = [
        LabelledLoss(model, pairops.ms_loss, mini_batch_size=chunk) for chunk in (size, None)
    ]
    same(*labelled, features[:1], LABELS)


def test_a_chunk_is_encoded_twice_with_the_same_dropout(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    features = columns(model.train(), 2)
    loss = PairedLoss(model, pairops.siglip_loss, mini_batch_size=5, scale=10, bias=-10)
    torch.manual_seed(1)
    value, gradient = result(loss, features, None)
    once = lambda encode, *given, use_reentrant: encode(*given)  # noqa: E731, ARG005
    monkeypatch.setattr("pairops.compat.sentence_transformers.columns.checkpoint", once)
    torch.manual_seed(1)
    for found, expected in zip((value, gradient), result(loss, features, None), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_inside_another_loss_of_theirs(theirs: Any, model: Any) -> None:
    given = {"temperature": 0.05, "symmetric": False}
    inner = PairedLoss(model, pairops.info_nce_loss, **given)
    expected = theirs.MultipleNegativesRankingLoss(model)
    ours, other = (theirs.MatryoshkaLoss(model, each, [16, 8]) for each in (inner, expected))
    same(ours, other, columns(model, 3))
    chunked = PairedLoss(model, pairops.info_nce_loss, mini_batch_size=5, **given)
    inside = theirs.MatryoshkaLoss(model, chunked, [16, 8])
    same(inside, other, columns(model, 3))
    labelled = LabelledLoss(model, pairops.ms_loss, mini_batch_size=5)
    whole = LabelledLoss(model, pairops.ms_loss)
    pair = (theirs.MatryoshkaLoss(model, each, [16, 8]) for each in (labelled, whole))
    same(*pair, columns(model, 1), LABELS)
    with torch.no_grad():
        features = columns(model, 3)
        value = inside(features, None)
        torch.testing.assert_close(value, other(columns(model, 3), None), rtol=1e-10, atol=0)


def test_what_learns_is_refused_inside_matryoshka_with_chunks(theirs: Any, model: Any) -> None:
    learning = PairedLoss(model, pairops.nn.InfoNCELoss(learn=["temperature"]), mini_batch_size=5)
    with pytest.raises(ValueError, match="has none for them; give it numbers"):
        theirs.MatryoshkaLoss(model, learning, [16, 8])(columns(model, 3), None)


def trained(model: Any, loss: nn.Module, folder: Path, table: dict[str, Any], **more: Any) -> Any:
    """The trainer, after 4 steps."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=12,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **more,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_dict(table), loss=loss
    )
    trainer.train()
    return trainer


def curve(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


PAIRS = {"anchor": texts(48, 1), "positive": texts(48, 2), "negative": texts(48, 3)}
CLASSED = {"text": texts(48, 1), "label": [k // 4 for k in range(48)]}


def test_the_trainer_goes_the_same_way(theirs: Any, model: Any, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    loss = PairedLoss(model, pairops.info_nce_loss, temperature=0.05, symmetric=False)
    found = curve(trained(model, loss, tmp_path, PAIRS))
    expected = curve(trained(other, theirs.MultipleNegativesRankingLoss(other), tmp_path, PAIRS))
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(found) == 4


def test_the_trainer_trains_what_a_loss_learns(model: Any, tmp_path: Path) -> None:
    others, learned = [model, copy.deepcopy(model)], []
    curves = []
    for size, each in zip((None, 5), others, strict=True):
        contrast = pairops.nn.InfoNCELoss(temperature=0.05, learn=["temperature"])
        loss = PairedLoss(each, contrast, mini_batch_size=size)
        more = {"gradient_accumulation_steps": 2}
        curves.append(curve(trained(each, loss, tmp_path, PAIRS, **more)))
        learned.append(loss.function.log_temperature.item())
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert learned[0] == pytest.approx(learned[1], rel=1e-5)
    assert learned[0] != pytest.approx(-math.log(20), rel=1e-5)


def test_a_model_card_names_the_loss(model: Any, tmp_path: Path) -> None:
    loss = LabelledLoss(model, pairops.ms_loss, base=0.3, mini_batch_size=5)
    trained(model, loss, tmp_path, CLASSED).save_model(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    for line in (
        "loss:LabelledLoss",
        '"loss": "ms_loss"',
        '"base": 0.3',
        '"mini_batch_size": 5',
        "title={pairops.losses.multi_similarity.ms_loss}",
        "note={Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019.",
    ):
        assert line in card
