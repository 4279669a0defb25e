"""sentence-transformers: their trainer with our loss, on a data set with three columns.

python examples/with_sentence_transformers.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import multicontrast as mc


class Loss(nn.Module):
    """A loss of one column for each modality. The trainer passes their tokens, and labels that are not used here."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.loss = mc.TrimodalInfoNCE(mc.Temperature(0.07, learnable=False), negatives="cyclic")

    def forward(self, columns: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        return self.loss(*(self.model(column)["sentence_embedding"] for column in columns))


def model() -> SentenceTransformer:
    """A table of word vectors over forty words, in place of a model from the hub."""
    words = {f"word{number}": number for number in range(40)} | {"[UNK]": 40}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 (a word, no password)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")


def samples() -> Dataset:
    """Title, abstract and keywords about one of ten subjects, with different words in each column."""
    topics = [number % 10 for number in range(160)]
    names = ("title", "abstract", "keywords")
    return Dataset.from_dict({name: [f"word{n + 10 * place}" for n in topics] for place, name in enumerate(names)})


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    encoder = model()

    def cosine() -> float:
        titles, keywords = (encoder.encode([f"word{n + first}" for n in range(10)]) for first in (0, 20))
        return float(mc.metrics.cosine_alignment(torch.from_numpy(titles), torch.from_numpy(keywords)))

    before = cosine()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder, num_train_epochs=20, per_device_train_batch_size=32, learning_rate=0.05, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        SentenceTransformerTrainer(encoder, arguments, train_dataset=samples(), loss=Loss(encoder)).train()
    after = cosine()
    print(f"cosine of titles with their keywords: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
