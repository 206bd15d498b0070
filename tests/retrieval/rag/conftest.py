"""Small models made on the spot, saved as larger ones are: they know words, and nothing about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = (
    "red green blue wooden steel plastic train ship car kite doll castle magnet puzzle wagon price old small large for "
    "children made in of the a is it has wheel window track battery game card family how much what who water bath"
).split()


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {
        word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789"])
    }
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def _config(**more: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=5 + len(WORDS) + 10, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, **more,
    )  # fmt: skip


def _saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def small_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model: the mean of a Bert of one layer with random weights."""
    pytest.importorskip("sentence_transformers", reason="needs the extra rag")
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("encoders")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        path = _saved(BertModel(_config()), folder / "bert")
        word = models.Transformer(path, max_seq_length=64)
        SentenceTransformer(modules=[word, models.Pooling(32)], device="cpu").save(str(folder / "small-encoder"))
    return folder / "small-encoder"


@pytest.fixture(scope="session")
def small_sparse_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SPLADE model with random weights."""
    pytest.importorskip("sentence_transformers", reason="needs the extra rag")
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
    from transformers import BertForMaskedLM

    folder = tmp_path_factory.mktemp("sparse_encoders")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        path = _saved(BertForMaskedLM(_config(initializer_range=1.0)), folder / "bert")
        modules = [MLMTransformer(path, max_seq_length=64), SpladePooling()]
        SparseEncoder(modules=modules, device="cpu").save(str(folder / "small-splade"))
    return folder / "small-splade"


@pytest.fixture(scope="session")
def small_nli_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pairs with the labels of natural language inference and random weights."""
    pytest.importorskip("transformers", reason="needs the extra llm")
    from transformers import BertForSequenceClassification

    folder = tmp_path_factory.mktemp("nli") / "small-nli"
    labels = {0: "contradiction", 1: "entailment", 2: "neutral"}
    config = _config(id2label=labels, label2id={name: number for number, name in labels.items()}, initializer_range=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        _saved(BertForSequenceClassification(config), folder)
    return folder


@pytest.fixture
def saying_lm(saying_server: Any) -> Any:
    """The language model behind that server."""
    pytest.importorskip("openai", reason="needs the extra llm")
    from recsys.retrieval.rerank.lm.server import ServerLanguageModel

    return ServerLanguageModel("m", base_url=saying_server.url, timeout_s=30, max_retries=0, context_tokens=3000)
