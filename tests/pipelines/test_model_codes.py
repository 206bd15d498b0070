"""Semantic IDs of a model's own item vectors: made anew, carried over, kept in a bundle with what they belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from recsys.bundle import MARKER, Bundle, _checksum
from recsys.code_accuracy import code_accuracy
from recsys.code_children import CodeChildren
from recsys.code_decoder import StateReader
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import sha256_file, write_json
from recsys.index.code_trie import CodeTrie
from recsys.model import UnifiedModel
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.code_settings import CodeSettings
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.export import export
from recsys.pipelines.fit import fit_dataset
from recsys.pipelines.item_codes import GivenCodes, codes_for
from recsys.pipelines.made_codes import write_tokenizers
from recsys.pipelines.model_codes import MODEL_BLOCK, carried_codes, codes_of_model, refresh_codes
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.recipe import validation_requests
from recsys.pipelines.unified_module import UnifiedModule, started_network
from recsys.pipelines.warm_start import warm_start
from recsys.retrieval.recommender import Recommender
from recsys.tokenizers.item_tokenizer import load_item_tokenizer

RETRIEVERS = ("dense", "dense_learned", "memory", "generative", "parallel", "set", "hybrid")
FAST: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "logger": False,
    "memory": False,
    "quiet": True,
}


def started(dataset: Dataset) -> tuple[UnifiedModel, GivenCodes]:
    """A network before its first step, with codes of its own item vectors."""
    model, codes = started_network(PreparedData(str(dataset.path)), {"dim": 16, "window": 16, "detach_codes": False})
    assert codes is not None
    return model, codes


def moved(model: UnifiedModel, by: float) -> Tensor:
    """Move the item vectors; returns the codes before."""
    before = model.codes.of("codes").clone()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        model.items.ids.weight.add_(by * torch.randn(model.items.ids.weight.shape, generator=generator))
    return before


# -- made --------------------------------------------------------------------------------------------------------------


def test_codes_are_those_of_the_item_vectors(toy_dataset: Dataset, tmp_path: Path) -> None:
    model, codes = started(toy_dataset)
    vectors = {MODEL_BLOCK: model.eval().item_vectors().detach().numpy()}
    model.train()
    again = codes_of_model(model, toy_dataset, CodeSettings())
    assert again is not None and model.training
    write_tokenizers(codes.tokenizers() or {}, tmp_path)
    for kind, sizes in model.codes.sizes.items():
        code_IL = model.codes.of(kind).numpy()
        assert len(np.unique(code_IL, axis=0)) > 10
        tokenizer = load_item_tokenizer(tmp_path / kind)
        assert tokenizer.codebook_sizes == sizes and list(tokenizer.widths) == [MODEL_BLOCK]
        assert np.array_equal(tokenizer.assign(vectors), code_IL)
        assert np.array_equal(again.codes[kind].numpy(), code_IL)


def test_the_decoder_starts_from_the_centroids(toy_dataset: Dataset) -> None:
    """The codebooks add up to about the item's vector, whatever scale the tokenizer gave it."""
    model, _ = started(toy_dataset)
    assert model.code_decoder is not None
    vectors_ID = model.eval().item_vectors().detach()
    code_IL = model.codes.of("codes").long()
    levels = range(code_IL.shape[1])
    sum_ID = torch.stack([model.code_decoder.codebook(level)[code_IL[:, level]] for level in levels]).sum(0)
    centred_ID = vectors_ID - vectors_ID.mean(0)
    assert (sum_ID - sum_ID.mean(0) - centred_ID).norm() < 0.6 * centred_ID.norm()


def test_vectors_that_tell_no_items_apart_have_no_codes(toy_dataset: Dataset) -> None:
    model, _ = started(toy_dataset)
    before = model.codes.of("codes").clone()
    with torch.no_grad():
        for parameter in model.items.parameters():
            parameter.zero_()
    assert codes_of_model(model, toy_dataset, CodeSettings()) is None
    assert refresh_codes(model, toy_dataset, seed=0) is None
    assert torch.equal(model.codes.of("codes"), before)


# -- made anew ---------------------------------------------------------------------------------------------------------


def test_codes_of_vectors_that_barely_moved_keep_their_numbers(toy_dataset: Dataset) -> None:
    model, _ = started(toy_dataset)
    assert model.code_decoder is not None
    book = model.code_decoder.codebook(1).clone()
    # Under other numbers: codebooks made anew from almost the same vectors have the old ones, unless they are matched.
    reversed_codes = {
        # The last code of a set says that an item has no vector, and keeps its number.
        kind: torch.tensor(sizes) - (2 if kind == "set_codes" else 1) - model.codes.of(kind).long()
        for kind, sizes in model.codes.sizes.items()
    }
    model.codes.fill(reversed_codes)
    moved(model, 1e-6)
    made = refresh_codes(model, toy_dataset, seed=0)
    assert made is not None
    for kind, wanted in reversed_codes.items():
        assert torch.equal(made.codes[kind], wanted)
        assert torch.equal(model.codes.of(kind).long(), wanted)
    assert torch.allclose(model.code_decoder.codebook(1), book.flip(0), atol=1e-4)


def test_codes_follow_vectors_that_moved_far(toy_dataset: Dataset, tmp_path: Path) -> None:
    model, _ = started(toy_dataset)
    assert model.code_decoder is not None
    book = model.code_decoder.codebook(0).clone()
    before = moved(model, 5.0)
    made = refresh_codes(model, toy_dataset, seed=0)
    assert made is not None
    assert not torch.equal(model.codes.of("codes"), before)
    assert not torch.equal(model.code_decoder.codebook(0), book)
    # Codes, their tokenizer and the decoder's codebooks have the same numbers.
    write_tokenizers(made.tokenizers() or {}, tmp_path)
    vectors = {MODEL_BLOCK: model.eval().item_vectors().detach().numpy()}
    found = load_item_tokenizer(tmp_path / "codes").assign(vectors)
    assert np.array_equal(found, model.codes.of("codes").numpy())
    first = model.codes.of("codes")[:, 0].long()
    vectors_ID = torch.from_numpy(vectors[MODEL_BLOCK])
    centre_KD = model.code_decoder.codebook(0)
    own = torch.stack([vectors_ID[first == code].mean(0) for code in first.unique()]) - vectors_ID.mean(0)
    cosine = torch.cosine_similarity(own[:, None], centre_KD[first.unique()][None], dim=2)
    assert torch.equal(cosine.argmax(1), torch.arange(len(own)))


class _Noted(L.Callback):
    """Codes at the end of every epoch."""

    def __init__(self) -> None:
        self.codes: list[Tensor] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnifiedModule)
        self.codes.append(pl_module.model.codes.of("codes").clone())


@pytest.fixture(scope="module")
def trained(toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, _Noted]:
    """A short training with automatic codes."""
    noted = _Noted()
    settings: dict[str, Any] = {
        "max_epochs": 4,
        "dim": 16,
        "window": 16,
        "batch_tokens": 64,
        "lr": 0.02,
        "warmup_steps": 1,
        "detach_codes": False,
    }
    best = fit_dataset(toy_dataset, tmp_path_factory.mktemp("fit") / "run", watchers=[noted], **settings, **FAST)
    return best, noted


def test_training_makes_codes_anew_between_epochs(trained: tuple[Path, _Noted]) -> None:
    codes = trained[1].codes
    changed = [not torch.equal(one, other) for one, other in zip(codes, codes[1:], strict=False)]
    assert changed == [True, True, False]  # before the second and the third epoch


class _Judged(L.Callback):
    """Accuracy of codes as validation logged it, and as the model has it among the codes of its catalogue."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.found: list[dict[str, float]] = []
        self.wanted: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnifiedModule)
        model, requests = pl_module.model, validation_requests(self.dataset)
        assert model.code_decoder is not None
        histories = [
            self.dataset.events.history(int(u), int(e)) for u, e in zip(requests.user, requests.end, strict=True)
        ]
        states = model.encode(histories, user_BK=self.dataset.user_rows(requests.user))
        query_BD = model.query(states, torch.from_numpy(requests.timestamp), torch.from_numpy(requests.surface))
        code_BL = model.codes.of("codes")[torch.from_numpy(requests.target)].long()
        children = CodeChildren.of(model.codes.of("codes"), model.config.code_sizes)
        self.wanted.append(
            code_accuracy(model.code_decoder, query_BD, code_BL, StateReader(states), children).figures()
        )
        self.found.append(
            {name.removeprefix("val/codes/"): float(value) for name, value in trainer.callback_metrics.items()
             if name.startswith("val/codes/")}
        )  # fmt: skip


def test_validation_asks_among_the_codes_that_the_model_has_now(toy_dataset: Dataset, tmp_path: Path) -> None:
    judged = _Judged(toy_dataset)
    settings: dict[str, Any] = {"max_epochs": 3, "dim": 16, "window": 16, "lr": 0.02, "code_kinds": "codes"}
    settings["detach_codes"] = False
    fit_dataset(toy_dataset, tmp_path / "run", watchers=[judged], code_children=True, **settings, **FAST)
    assert len(judged.found) == 3
    for found, wanted in zip(judged.found, judged.wanted, strict=True):
        assert {name: found[name] for name in wanted} == pytest.approx(wanted)


# -- carried over ------------------------------------------------------------------------------------------------------


def test_old_items_keep_their_codes_and_new_ones_get_those_of_their_vectors(
    toy_dataset: Dataset, toy_frames: dict[str, pl.DataFrame], trained: tuple[Path, _Noted], tmp_path: Path
) -> None:
    old, meta = load_model(trained[0])
    more = pl.DataFrame({"item_id": ["a0", "z9"], "title": ["new", "new"], "text": ["red ship", "blue car"]})
    grown = prepare_frames(
        toy_frames["interactions"], pl.concat([toy_frames["items"], more]), output=tmp_path / "grown"
    )
    old_row_I = torch.from_numpy(toy_dataset.item_index(grown.item_ids))
    begun = warm_start(PreparedData(str(grown.path)), {}, trained[0])
    network = begun.network.eval()
    vectors = {MODEL_BLOCK: network.item_vectors().detach().numpy()}
    write_tokenizers(meta["tokenizers"], tmp_path / "before")
    write_tokenizers(begun.tokenizers or {}, tmp_path / "after")
    is_old_I = old_row_I >= 0
    assert network.codes.sizes == old.codes.sizes and int((~is_old_I).sum()) == 2
    for kind in network.codes.sizes:
        code_IL = network.codes.of(kind)
        assert torch.equal(code_IL[is_old_I], old.codes.of(kind)[old_row_I[is_old_I]])
        for folder in ("before", "after"):  # frozen: the codebooks are the same ones
            own_IL = load_item_tokenizer(tmp_path / folder / kind).encode(vectors)
            assert np.array_equal(code_IL[~is_old_I].numpy(), own_IL[~is_old_I.numpy()])
    of_content = codes_for(toy_dataset, "content", tuple(old.codes.sizes), seed=0)
    assert of_content is not None
    for foreign in (None, of_content.tokenizers()):
        assert carried_codes(old, foreign, network, grown, old_row_I) is None


# -- in a bundle -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(toy_dataset: Dataset, trained: tuple[Path, _Noted], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    export(trained[0], toy_dataset.path, path, histories=True)
    return path


def test_a_bundle_has_every_retriever_and_each_recommends(bundle: Path, toy_dataset: Dataset) -> None:
    rec = Recommender.load(bundle)
    assert rec.bundle.retrievers == RETRIEVERS
    assert (bundle / "tokenizers" / "sids.json").is_file() and rec.bundle.manifest["hybrid_weights"] is not None
    user = toy_dataset.user_ids[1]
    seen = set(toy_dataset.item_ids.gather(toy_dataset.events.history(1).item))
    for name in RETRIEVERS:
        page = rec.recommend(user, k=5, retrievers=(name,), at=1_800_000_000)
        ids = page.item_ids
        assert len(set(ids)) == len(ids) and not set(ids) & seen, name
        assert len(ids) == 5 or name == "memory"
        if name == "hybrid":
            assert {hit.retriever for hit in page} <= {f"hybrid/{one}" for one in (*RETRIEVERS, "cold")}
        else:
            assert {hit.retriever for hit in page} <= {name}


def rewritten(bundle: Path) -> None:
    """Make bundle.json agree with the files, as somebody would who puts a bundle together by hand."""
    manifest = json.loads((bundle / MARKER).read_text())
    files = [file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()]
    manifest["files"] = {name: sha256_file(bundle / name) for name in sorted(files) if name != MARKER}
    manifest["checksum"] = _checksum(manifest)
    write_json(bundle / MARKER, manifest)


def test_a_trie_of_other_codes_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    rewritten(copy)
    trie = Bundle.open(copy).trie
    assert trie is not None
    codes_IL = trie.codes()
    codes_IL[[0, 7]] = codes_IL[[7, 0]]
    assert not torch.equal(codes_IL, trie.codes())
    shutil.rmtree(copy / "trie")
    CodeTrie.build(codes_IL, trie.sizes).save(copy / "trie")
    rewritten(copy)
    with pytest.raises(InputError, match="trie holds other semantic IDs than the model was trained on"):
        Bundle.open(copy)
