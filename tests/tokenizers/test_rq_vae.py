"""RQ-VAE: the loss, codes that stay alive, blocks that may be missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.tokenizers.block_dropout import blank_blocks
from recsys.tokenizers.protocol import Floats
from recsys.tokenizers.rq_vae import RqVae, RqVaeConfig, _Coder, _Quantiser, _start_codebooks


def clustered(num: int = 1500, width: int = 16, groups: int = 40, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width))
    return (centres[rng.integers(groups, size=num)] + 0.2 * rng.normal(size=(num, width))).astype(np.float32)


def test_loss_and_gradients_of_one_pass() -> None:
    books = [torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 0.5], [0.25, 0.0]])]
    for book in books:
        book.requires_grad_()
    latent = torch.tensor([[2.0, 0.0]], requires_grad=True)
    out, loss, residuals = _Quantiser(books, commitment=0.25)(latent)
    # Level 1: code 0 leaves (1, 0); level 2: code 1 leaves (.75, 0). Mean over two entries, (1 + .25) times each.
    assert out.tolist() == [[1.25, 0.0]]
    assert [rest.tolist() for rest in residuals] == [[[2.0, 0.0]], [[1.0, 0.0]]]
    assert loss.item() == pytest.approx(1.25 * (1.0**2 / 2 + 0.75**2 / 2))
    grad_out, *_ = torch.autograd.grad(out.sum(), latent, retain_graph=True)
    assert grad_out.tolist() == [[1.0, 1.0]]  # straight through
    loss.backward()
    assert latent.grad is not None and books[0].grad is not None and books[1].grad is not None
    assert latent.grad[0, 0] == pytest.approx(0.25 * (1.0 + 0.75))  # commitment alone
    assert books[0].grad[0, 0] == pytest.approx(-1.0) and books[1].grad[1, 0] == pytest.approx(-0.75)


def test_codebooks_start_from_kmeans_of_first_latents() -> None:
    torch.manual_seed(0)
    rows = torch.from_numpy(clustered())
    net = _Coder(16, RqVaeConfig(hidden_dims=(64, 64), latent_dim=8))
    books = _start_codebooks(net, rows, (64, 32), np.random.default_rng(0))
    assert [book.shape for book in books] == [(64, 8), (32, 8)]
    with torch.no_grad():
        latent = net.encoder(rows)
    assert latent.std().item() == pytest.approx(1.0, rel=1e-4)
    _, _, residuals = _Quantiser([torch.from_numpy(book) for book in [*books, books[0][:1]]], 0.25)(latent)
    left = [rest.square().mean().item() for rest in residuals]
    assert left[1] < 0.1 * left[0] and left[2] < 0.8 * left[1]


def test_unused_codes_move_to_residuals_and_used_ones_stay() -> None:
    books = [torch.tensor([[0.0, 0.0], [50.0, 50.0], [1.0, 1.0]])]
    quantiser = _Quantiser(books, commitment=0.25)
    rows = torch.rand(64, 2)
    _, _, residuals = quantiser(rows)
    quantiser.restart(residuals, torch.Generator().manual_seed(0))
    assert (books[0][1] == rows).all(1).any()
    assert books[0][[0, 2]].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert quantiser.used[0].sum() == 0


def test_it_does_not_collapse() -> None:
    rows = clustered()
    config = RqVaeConfig(codebook_sizes=(32, 32), hidden_dims=(64,), latent_dim=8, num_steps=250, batch_size=256)
    tokenizer = RqVae.fit(rows, config, seed=0)
    codes = tokenizer.encode(rows)
    health = tokenizer.health(rows, codes)
    assert all(dead < size / 2 for dead, size in zip(health.dead_codes, (32, 32), strict=True))
    assert all(bits > 0.7 * most for bits, most in zip(health.entropy_bits, health.max_bits, strict=True))
    assert health.relative_error < 0.5


def test_restarts_bring_back_a_codebook_that_died() -> None:
    rows = clustered()
    quick = {"hidden_dims": (32,), "latent_dim": 8, "batch_size": 256, "codebook_sizes": (32,)}
    dead = []
    for every in (10, 10_000):
        # So large steps throw codes away from the latents: without restarts most of them never come back.
        config = RqVaeConfig(**quick, num_steps=120, learning_rate=0.1, restart_every=every)  # type: ignore[arg-type]
        tokenizer = RqVae.fit(rows, config, seed=0)
        dead.append(tokenizer.health(rows, tokenizer.encode(rows)).dead_codes[0])
    assert dead[0] < dead[1]


def test_blanked_rows_keep_a_block() -> None:
    rows = torch.rand(4000, 7) + 1
    rows[:1000, 3:] = 0.0  # of the last two blocks of three nothing is there
    rows[1000:2000, 5:] = 0.0
    widths = (3, 2, 2)
    out = blank_blocks(rows, widths, 0.4, torch.Generator().manual_seed(0))
    before, after = (torch.stack([part.ne(0).any(1) for part in x.split(list(widths), 1)], 1) for x in (rows, out))
    assert torch.equal(out[:1000], rows[:1000])
    lost = before & ~after
    assert (lost.sum(1) <= 1).all() and after.any(1).all()
    assert torch.equal(out[out != 0], rows[out != 0])
    assert lost[1000:].any(1).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert lost[2000:].sum(0).min() > 200  # every block in turn
    assert torch.equal(blank_blocks(rows, widths, 0.0, torch.Generator()), rows)


def test_block_dropout_makes_codes_that_survive_a_missing_block() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(8, size=1200)
    blocks = [rng.normal(size=(8, 6))[group] + 0.1 * rng.normal(size=(1200, 6)) for _ in range(2)]
    rows = np.concatenate(blocks, axis=1).astype(np.float32)
    without = rows.copy()
    without[:, 6:] = rows[:, 6:].mean(0)
    errors = {}
    for dropout in (0.0, 0.5):
        config = RqVaeConfig(
            codebook_sizes=(8, 8),
            hidden_dims=(32,),
            latent_dim=8,
            num_steps=150,
            batch_size=256,
            block_widths=(6, 6),
            block_dropout=dropout,
            learning_rate=3e-3,
        )
        tokenizer = RqVae.fit(rows, config, seed=0)
        errors[dropout] = np.square(tokenizer.decode(tokenizer.encode(without)) - rows).mean()
    assert errors[0.5] < 0.6 * errors[0.0]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"block_dropout": 1.0}, r"RqVaeConfig.block_dropout must be in \[0, 1\), got 1.0"),
        ({"block_dropout": 0.1}, "needs block_widths of at least two blocks, got None"),
        ({"block_dropout": 0.1, "block_widths": (4,)}, r"at least two blocks, got \(4,\)"),
        ({"block_widths": (4, 0)}, "block_widths must be positive"),
        ({"latent_dim": 0}, "RqVaeConfig.latent_dim must be positive, got 0"),
        ({"hidden_dims": (8, 0)}, r"hidden_dims must be positive, got \(8, 0\)"),
    ],
)
def test_config_is_checked(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RqVaeConfig(**wrong)  # type: ignore[arg-type]


def test_block_widths_must_be_those_of_the_vectors() -> None:
    config = RqVaeConfig(block_widths=(6, 6), block_dropout=0.1)
    with pytest.raises(ValueError, match="add up to 12, the vectors have 16 entries; give the widths of the blocks"):
        RqVae.fit(clustered(), config, seed=0)
