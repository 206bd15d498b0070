"""What every method promises, the same tests for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.protocol import Floats, SemanticTokenizer
from recsys.tokenizers.tokenizer_registry import TOKENIZER_METHODS, fit_tokenizer, load_tokenizer, tokenizer_config

SMALL = {
    "rq-kmeans": {"codebook_sizes": (8, 16, 4)},
    "rq-vae": {
        "codebook_sizes": (8, 16, 4),
        "hidden_dims": (32,),
        "latent_dim": 6,
        "num_steps": 200,
        "batch_size": 64,
        "learning_rate": 5e-3,
    },
    "fsq": {"num_parts": 3, "levels": (5, 4, 3), "num_steps": 150, "batch_size": 64, "learning_rate": 5e-3},
    "opq": {"num_parts": 3, "codebook_size": 8, "num_rotations": 3},
}
WIDTH = 10


def vectors(num: int = 240, seed: int = 0, groups: int = 20) -> Floats:
    """Clustered rows, two of them zero."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, WIDTH))
    rows = centres[rng.integers(groups, size=num)] + 0.3 * rng.normal(size=(num, WIDTH))
    rows[[3, num - 1]] = 0.0
    return rows.astype(np.float32)


VECTORS = vectors()
FITTED = {method: fit_tokenizer(method, VECTORS, seed=1, **options) for method, options in SMALL.items()}
every_method = pytest.mark.parametrize("method", TOKENIZER_METHODS)


def written(tokenizer: FittedTokenizer, folder: Path) -> dict[str, bytes]:
    tokenizer.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@every_method
def test_protocol_shapes_and_ranges(method: str) -> None:
    tokenizer = FITTED[method]
    assert isinstance(tokenizer, SemanticTokenizer)
    assert (tokenizer.name, tokenizer.width) == (method, WIDTH)
    sizes = tokenizer.codebook_sizes
    for codes in (tokenizer.encode(VECTORS), tokenizer.assign(VECTORS), tokenizer.append(VECTORS[:5])):
        assert codes.dtype == np.int32 and codes.shape[1] == len(sizes)
        assert (codes >= 0).all() and (codes < np.array(sizes)).all()
    decoded = tokenizer.decode(tokenizer.encode(VECTORS))
    assert decoded.dtype == np.float32 and decoded.shape == VECTORS.shape and np.isfinite(decoded).all()
    assert tokenizer.encode(np.empty((0, WIDTH))).shape == (0, len(sizes))
    assert tokenizer.decode(np.empty((0, len(sizes)), np.int64)).shape == (0, WIDTH)


@every_method
def test_a_code_is_a_function_of_its_vector_alone(method: str) -> None:
    tokenizer = FITTED[method]
    codes = tokenizer.encode(vectors(seed=7))
    middles = (tokenizer.decode(codes) + tokenizer.decode(codes % (np.array(tokenizer.codebook_sizes) - 1))) / 2
    rows = np.concatenate([vectors(seed=7), middles])  # the latter as near as can be to two codes at once
    together = tokenizer.encode(rows)
    alone = np.concatenate([tokenizer.encode(row[None]) for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(tokenizer.encode(rows[order]), together[order])
    np.testing.assert_array_equal(tokenizer.encode(torch.from_numpy(rows)), together)
    np.testing.assert_array_equal(tokenizer.encode(rows.astype(np.float64)), together)
    np.testing.assert_array_equal(tokenizer.append(rows[:9]), together[:9])


@every_method
@pytest.mark.filterwarnings("error")
def test_read_only_vectors_are_taken_without_a_warning(method: str, tmp_path: Path) -> None:
    FITTED[method].save(tmp_path)
    tokenizer, rows = load_tokenizer(tmp_path), vectors(seed=7)
    rows.setflags(write=False)
    codes = tokenizer.assign(rows)
    codes.setflags(write=False)
    assert tokenizer.health(rows, codes).num_items == len(tokenizer.encode(rows)) == len(rows)


@every_method
def test_codes_say_more_than_the_mean_and_more_than_shuffled_codes(method: str) -> None:
    tokenizer = FITTED[method]
    codes = tokenizer.encode(VECTORS)
    health = tokenizer.health(VECTORS, codes)
    shuffled = tokenizer.health(VECTORS, np.random.default_rng(0).permutation(codes))
    assert health.relative_error < 0.6 < shuffled.relative_error
    assert health.neighbours_kept > 2 * shuffled.neighbours_kept


@every_method
def test_same_seed_same_bytes_another_seed_others(method: str, tmp_path: Path) -> None:
    torch.manual_seed(99)  # the global state is neither read nor changed
    before = torch.get_rng_state()
    again = fit_tokenizer(method, VECTORS.copy(), seed=1, **SMALL[method])
    assert torch.equal(torch.get_rng_state(), before)
    first = written(FITTED[method], tmp_path / "first")
    assert written(again, tmp_path / "again") == first
    other = fit_tokenizer(method, VECTORS, seed=2, **SMALL[method])
    assert written(other, tmp_path / "other") != first


def test_saved_tokenizers_give_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    rows = vectors(seed=11)
    np.save(tmp_path / "rows.npy", rows)
    for method, tokenizer in FITTED.items():
        tokenizer.save(tmp_path / method)
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from recsys.tokenizers.tokenizer_registry import load_tokenizer\n"
        "rows = np.load(Path(sys.argv[1]) / 'rows.npy')\n"
        "for name in sys.argv[2:]:\n"
        "    folder = Path(sys.argv[1]) / name\n"
        "    tokenizer = load_tokenizer(folder)\n"
        "    codes = tokenizer.encode(rows)\n"
        "    tokenizer.save(folder / 'again')\n"
        "    np.savez(folder / 'out.npz', codes=codes, decoded=tokenizer.decode(codes), whole=tokenizer.assign(rows))\n"
        "unwanted = {'sklearn', 'lightning', 'polars'} & set(sys.modules)\n"
        "assert not unwanted, unwanted\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path), *FITTED], check=True, timeout=120)
    for method, tokenizer in FITTED.items():
        with np.load(tmp_path / method / "out.npz") as out:
            codes = tokenizer.encode(rows)
            np.testing.assert_array_equal(out["codes"], codes)
            np.testing.assert_array_equal(out["decoded"], tokenizer.decode(codes))
            np.testing.assert_array_equal(out["whole"], tokenizer.assign(rows))
        for file in ("tokenizer.json", "tokenizer.safetensors"):
            assert (tmp_path / method / "again" / file).read_bytes() == (tmp_path / method / file).read_bytes()
        assert load_tokenizer(tmp_path / method).config == tokenizer.config


@every_method
def test_vectors_that_cannot_work_are_refused(method: str) -> None:
    for rows, text in [
        (np.full((9, WIDTH), 2.0), "all 9 vectors are equal; give vectors that tell items apart"),
        (np.zeros((0, WIDTH)), "0 vectors to fit on"),
        (np.ones(9), r"must be \[items, entries\], got shape \(9,\)"),
        (np.eye(WIDTH) * 1e30, "the largest entry is 1e\\+30.*scale the vectors"),
        (np.eye(WIDTH) * 1e-20, "the largest entry is 1e-20.*scale the vectors"),
    ]:
        with pytest.raises(ValueError, match=f"{method}: .*{text}"):
            fit_tokenizer(method, rows, **SMALL[method])
    for wrong in (np.nan, np.inf, -np.inf, 1e39):
        rows = VECTORS.astype(np.float64)
        rows[17, 2] = wrong
        with pytest.raises(ValueError, match=f"{method}: row 17 holds NaN or infinity; drop"):
            fit_tokenizer(method, rows, **SMALL[method])
        with pytest.raises(ValueError, match=f"{method}: row 17 holds NaN or infinity; drop"):
            FITTED[method].encode(rows)
    with pytest.raises(ValueError, match=f"{method}: vectors have 4 entries, the tokenizer was fitted on 10"):
        FITTED[method].encode(np.ones((2, 4)))


@pytest.mark.parametrize("method", ["rq-kmeans", "rq-vae", "opq"])
def test_fewer_distinct_vectors_than_codes_are_refused(method: str) -> None:
    rows = np.tile(VECTORS[10:15], (40, 1))
    with pytest.raises(
        ValueError, match=f"{method}: .* has 5 distinct vectors for (8|16) codes; give codebooks of at most 5"
    ):
        fit_tokenizer(method, rows, **SMALL[method])


@every_method
def test_codes_of_another_tokenizer_are_refused(method: str) -> None:
    tokenizer = FITTED[method]
    codes = tokenizer.encode(VECTORS[:4]).astype(np.int64)
    codes[2, 1] = size = tokenizer.codebook_sizes[1]
    with pytest.raises(ValueError, match=rf"{method}: codes\[2, 1\] = {size} is outside \[0, {size}\)"):
        tokenizer.decode(codes)
    codes[2, 1] = -1
    with pytest.raises(ValueError, match=r"codes\[2, 1\] = -1"):
        tokenizer.health(VECTORS[:4], codes)
    with pytest.raises(ValueError, match=r"not \[items, 3\]"):
        tokenizer.decode(codes[:, :2])
    with pytest.raises(ValueError, match="codes must be integers, got float64"):
        tokenizer.decode(codes.astype(np.float64))
    with pytest.raises(ValueError, match="4 vectors and 3 codes"):
        tokenizer.health(VECTORS[:4], tokenizer.encode(VECTORS[:3]))


@every_method
def test_changed_and_foreign_files_are_refused_in_one_line(method: str, tmp_path: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(ValueError, match=text) as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)

    refused("tokenizer.json is missing")
    FITTED[method].save(tmp_path)
    config, arrays = tmp_path / "tokenizer.json", tmp_path / "tokenizer.safetensors"
    good = config.read_text()
    for text, error in [
        ("{", "not valid JSON"),
        ('{"format": "other"}', "does not describe a recsys-tokenizer"),
        (good.replace('"format_version": 1', '"format_version": 2'), "format version 2, this version reads 1"),
        (good.replace('"width": 10', '"width": 11'), "was changed after it was written"),
    ]:
        config.write_text(text)
        refused(error)
    config.write_text(good)
    data = arrays.read_bytes()
    arrays.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("does not have the SHA-256")
    arrays.unlink()
    refused("tokenizer.safetensors is missing")
    FITTED[method].save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer.safetensors"]
    other = next(made for name, made in FITTED.items() if name != method)
    with pytest.raises(ValueError, match=f"holds a tokenizer {method}, not {other.name}; use load_tokenizer"):
        type(other).load(tmp_path)


@every_method
def test_config_is_frozen_checked_and_saved_as_fitted(method: str, tmp_path: Path) -> None:
    config = tokenizer_config(method)
    with pytest.raises(FrozenInstanceError):
        config.num_steps = 3
    with pytest.raises(ValueError, match=f"{type(config).__name__}.num_steps must be .*, got -1"):
        replace(config, num_steps=-1)
    with pytest.raises(ValueError, match=f"{method}: .* has no 'num_step'; choose from .*num_steps"):
        tokenizer_config(method, num_step=3)
    with pytest.raises(ValueError, match=f"{method}: give a config or its fields"):
        fit_tokenizer(method, VECTORS, config, num_steps=3)
    tokenizer = fit_tokenizer(method, VECTORS, num_steps=2)  # sizes are filled in from the catalogue
    tokenizer.save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert None not in [
        value for name, value in stored["config"].items() if name in ("codebook_sizes", "levels", "codebook_size")
    ]
    assert tuple(stored["codebook_sizes"]) == tokenizer.codebook_sizes


def test_unknown_methods_and_configs_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no tokenizer 'rqvae'; choose one of rq-kmeans, rq-vae, fsq, opq"):
        fit_tokenizer("rqvae", VECTORS)
    with pytest.raises(TypeError, match="opq takes a ProductCodesConfig, got a FsqConfig"):
        fit_tokenizer("opq", VECTORS, tokenizer_config("fsq"))
