"""The text transform: as scikit-learn has it, from files without scikit-learn, and for any text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from recsys.tokenizers.text_svd import TextSvd

WORDS = ["red", "Blue", "TRAIN", "ship", "wood", "größe", "x1", "a", "naïve"]
TEXTS = [" ".join(np.random.default_rng(seed).choice(WORDS, 3 + seed % 5)) for seed in range(40)]


def fitted(**how: int) -> TextSvd:
    transform = TextSvd.fit([*TEXTS, None, ""], **how)
    assert transform is not None
    return transform


def test_sparse_rows_are_those_of_scikit_learn() -> None:
    theirs = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(TEXTS)
    transform = fitted()
    assert list(transform.vocabulary) == theirs.get_feature_names_out().tolist()
    asked = [*TEXTS, "unheard-of words", "red red red blue"]
    np.testing.assert_allclose(transform.sparse(asked).toarray(), theirs.transform(asked).toarray(), atol=1e-6)


def test_dense_vectors_keep_what_the_rank_allows() -> None:
    transform = fitted(dim=4)
    assert transform.dim == 4
    rows = transform.sparse(TEXTS).toarray().astype(np.float64)
    values = np.linalg.svd(rows, compute_uv=False)
    kept = np.linalg.norm(rows @ transform.projection_VK) ** 2
    assert kept == pytest.approx((values[:4] ** 2).sum(), rel=1e-4)
    projected = rows @ transform.projection_VK
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(transform.dense(TEXTS), expected, atol=1e-5)


def test_full_rank_keeps_every_cosine() -> None:
    transform = fitted(dim=10_000)
    rows = transform.sparse(TEXTS)
    dense = transform.dense(rows)
    np.testing.assert_allclose(dense @ dense.T, (rows @ rows.T).toarray(), atol=1e-4)


def test_texts_without_a_known_word_are_zero() -> None:
    transform = fitted(dim=3)
    nothing = [None, "", "...", "zzz qqq"]
    assert transform.sparse(nothing).nnz == 0
    assert not transform.dense(nothing).any()


def test_one_word_one_text_and_no_word() -> None:
    assert TextSvd.fit([None, "", "?!"]) is None
    for texts in (["train"], ["train", "train"], ["red train"], ["red train", "blue train"]):
        transform = TextSvd.fit(texts)
        assert transform is not None
        np.testing.assert_allclose(np.linalg.norm(transform.dense(texts), axis=1), 1.0, rtol=1e-5)


def test_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fitted().save(tmp_path / name)
    for file in ("text_svd.json", "text_svd.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_saved_transform_is_applied_without_scikit_learn(tmp_path: Path) -> None:
    transform = fitted(dim=5)
    transform.save(tmp_path)
    asked = ["red train", "größe naïve", "nothing known"]
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from recsys.tokenizers.text_svd import TextSvd\n"
        "vectors = TextSvd.load(Path(sys.argv[1])).dense(json.loads(sys.argv[2]))\n"
        "assert 'sklearn' not in sys.modules, 'serving imports scikit-learn'\n"
        "print(json.dumps(vectors.tolist()))"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path), json.dumps(asked)], capture_output=True, text=True, check=True
    )
    np.testing.assert_array_equal(np.float32(json.loads(out.stdout)), transform.dense(asked))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no readable text transform"):
        TextSvd.load(tmp_path)
    fitted(dim=2).save(tmp_path)
    (tmp_path / "text_svd.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="is no recsys-text-svd"):
        TextSvd.load(tmp_path)
    fitted(dim=2).save(tmp_path)
    (tmp_path / "text_svd.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="no readable text transform"):
        TextSvd.load(tmp_path)
    with pytest.raises(ValueError, match="must be equally many"):
        TextSvd(["a"], np.ones(2, np.float32), np.ones((2, 1), np.float32))


TRANSFORM = fitted(dim=6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.text(max_size=20), st.sampled_from(TEXTS)), min_size=1, max_size=5))
def test_every_text_has_a_finite_vector_of_length_one_or_zero(texts: list[str | None]) -> None:
    vectors = TRANSFORM.dense(texts)
    length = np.linalg.norm(vectors, axis=1)
    assert (np.isclose(length, 1, atol=1e-5) | (length == 0)).all()
    alone = np.concatenate([TRANSFORM.dense([text]) for text in texts])
    np.testing.assert_allclose(alone, vectors, atol=1e-6)  # a text does not depend on its neighbours
