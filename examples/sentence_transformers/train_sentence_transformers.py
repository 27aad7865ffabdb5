"""The trainer of sentence-transformers: docstrings of Python's own modules find their code.

python examples/sentence_transformers/train_sentence_transformers.py
"""

import ast
import os
import random
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as TrainingArguments
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import pairops
from pairops.compat.sentence_transformers import PairedLoss
from pairops.retrieval import evaluate


def pairs() -> list[tuple[str, str]]:
    """The first paragraphs of docstrings, each with the code below it, in a random order."""
    found = {}
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                found[text.partition("\n\n")[0]] = "\n".join(map(ast.unparse, node.body[1:]))
    return random.Random(0).sample(list(found.items()), len(found))


def recall_at_10(model: SentenceTransformer, texts: list[tuple[str, str]]) -> float:
    x, y = (model.encode(list(side), convert_to_tensor=True) for side in zip(*texts, strict=True))
    index = torch.arange(len(texts))
    return evaluate(x, index, ref_emb=y, ref_labels=index, recall_at=[10]).recall[10]


found = pairs()
test, train = found[:500], found[500:]
tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
tokenizer.normalizer = normalizers.Lowercase()
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
words = trainers.WordLevelTrainer(special_tokens=["[UNK]"])
tokenizer.train_from_iterator([text for pair in train for text in pair], words)
torch.manual_seed(0)  # or SentenceTransformer("name of a trained one"), with a lower rate
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)])
before = recall_at_10(model, test)
loss = PairedLoss(model, pairops.info_nce_loss, temperature=0.05, group="auto")  # pairops
options = TrainingArguments(
    "build/sentence_transformers", num_train_epochs=5, per_device_train_batch_size=256,
    learning_rate=0.03, save_strategy="no", report_to="none",
)  # fmt: skip
data = Dataset.from_list([{"docstring": text, "code": code} for text, code in train])
SentenceTransformerTrainer(model, options, train_dataset=data, loss=loss).train()
after = recall_at_10(model, test)
print(f"recall@10 on {len(test)} other pairs: {before:.3f} before training, {after:.3f} after")
