"""Very many requests with adversarial logits: no item that is illegal, filtered, excluded or there twice.

Every returned score is compared with the log-probability of the returned item's own codes in float64, so that an item
cannot come with the beam of another.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.index import code_trie
from recsys.index.code_trie import CodeTrie
from recsys.retrieval.beam_config import BeamConfig
from recsys.retrieval.beam_search import beam_search

SIZES = (24, 24, 24, 24)
NUM_ITEMS, NUM_REQUESTS, NUM_ROWS, K = 2500, 500, 53, 10
KINDS = ("normal", "equal", "mostly never", "huge", "all tiny", "one huge", "dead ends", "steep", "coarse")
CONFIGS = (
    BeamConfig(widths=(12,)),
    BeamConfig(widths=(24, 10)),
    BeamConfig(widths=(2, 3, 4, 5)),
    BeamConfig(widths=(12,), num_groups=4),
    BeamConfig(widths=(16,), mass=0.8, least=2),
    BeamConfig(widths=(12,), normalise="children"),
    BeamConfig(widths=(12,), deadline_ms=0.0),
)


def logit_tables(seed):
    """Per level [kind, row, code]."""
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for size in SIZES:
        shape = (NUM_ROWS, size)
        normal = torch.randn(shape, generator=generator)
        uniform = torch.rand(shape, generator=generator)
        dead = uniform[:, :1] < 0.3
        kinds = {
            "normal": normal,
            "equal": torch.full(shape, -7.0),
            "mostly never": normal.masked_fill(uniform < 0.85, -torch.inf),
            "huge": normal.sign() * 1e30,
            "all tiny": torch.full(shape, -1e30),
            "one huge": torch.full(shape, -1e30).scatter(1, uniform.argmax(1, keepdim=True), 1e30),
            "dead ends": normal.masked_fill(dead, -torch.inf),
            "steep": -100.0 * uniform,
            "coarse": normal.round(),
        }
        tables.append(torch.stack([kinds[kind] for kind in KINDS]))
    return tables


class Adversary:
    """Request b has logits of kind b mod 9."""

    def __init__(self, tables):
        self.tables, self.level = tables, 0
        self.prefix_BW = torch.arange(NUM_REQUESTS)[:, None] % NUM_ROWS
        self.kind_B1 = torch.arange(NUM_REQUESTS)[:, None] % len(KINDS)

    def logits(self, parent_BW, code_BW):
        if parent_BW is not None:
            self.prefix_BW = next_row(self.prefix_BW.gather(1, parent_BW), code_BW)
        self.level += 1
        return self.tables[self.level - 1][self.kind_B1, self.prefix_BW]


def next_row(row, code):
    return (row * 31 + code * 7 + 1) % NUM_ROWS


def exact_scores(tables, code_BKL, num_levels):
    """[B, K] float64 log-probabilities of codes, every item by itself."""
    kind_B1 = torch.arange(NUM_REQUESTS)[:, None] % len(KINDS)
    row_BK = (torch.arange(NUM_REQUESTS)[:, None] % NUM_ROWS).expand(code_BKL.shape[:2])
    total_BK = torch.zeros(code_BKL.shape[:2], dtype=torch.float64)
    for level in range(num_levels):
        logp = tables[level].double().log_softmax(-1)
        total_BK += logp[kind_B1, row_BK, code_BKL[..., level]]
        row_BK = next_row(row_BK, code_BKL[..., level])
    return total_BK


def drawn_trie(rng, skewed):
    columns = [rng.zipf(1.5, NUM_ITEMS) - 1 if skewed else rng.integers(0, 12, NUM_ITEMS) * 2 for _ in SIZES]
    codes = np.minimum(np.stack(columns, 1), np.array(SIZES) - 1)
    trie = CodeTrie.build(codes[:2000], SIZES, rank_I=rng.integers(0, 9, 2000))
    trie = trie.without(torch.from_numpy(rng.choice(2000, 200, replace=False))).append(codes[2000:])
    return trie, torch.from_numpy(codes)


def check(hits, trie, codes, tables, config, allow_N, exclude_BE, kept_I):
    ids_BK, scores_BK = hits.ids_QK, hits.scores_QK
    filled_BK = ids_BK >= 0
    assert torch.equal(filled_BK.sum(1), hits.num_found_Q)
    assert torch.equal(filled_BK, torch.arange(K) < hits.num_found_Q[:, None])  # from the first place on
    assert torch.equal(filled_BK, scores_BK > -torch.inf) and not scores_BK.isnan().any()
    assert (ids_BK < NUM_ITEMS).all() and (scores_BK[:, 1:] <= scores_BK[:, :-1]).all()
    legal_I = kept_I.clone()
    if allow_N is not None:
        legal_I &= torch.zeros(NUM_ITEMS, dtype=torch.bool).index_fill(0, allow_N, value=True)
    assert legal_I[ids_BK[filled_BK]].all()
    out_BI = torch.zeros(NUM_REQUESTS, NUM_ITEMS + 1, dtype=torch.bool).scatter(1, exclude_BE % (NUM_ITEMS + 1), True)
    assert not (out_BI.gather(1, ids_BK.clamp_min(0)) & filled_BK).any()
    sorted_BK = ids_BK.sort(1).values
    assert not ((sorted_BK[:, 1:] == sorted_BK[:, :-1]) & (sorted_BK[:, 1:] >= 0)).any()
    assert torch.equal(hits.reachable_Q, (legal_I & ~out_BI[:, :-1]).sum(1))
    if config.normalise == "all":
        wanted_BK = exact_scores(tables, codes[ids_BK.clamp_min(0)], hits.levels_decoded)[filled_BK]
        torch.testing.assert_close(scores_BK[filled_BK].double(), wanted_BK, atol=1e-4, rtol=1e-5)
    if config in CONFIGS[:2] or config.normalise == "children":  # widths of at least k fill k where codes are possible
        possible_B = torch.tensor([kind not in ("mostly never", "dead ends") for kind in KINDS]).repeat(NUM_REQUESTS)
        possible_B = possible_B[:NUM_REQUESTS]
        assert torch.equal(hits.num_found_Q[possible_B], hits.reachable_Q.clamp_max(K)[possible_B])


def generate(num_batches, seed):
    """Search again and again, the second time of each batch without what the first time found."""
    rng = np.random.default_rng(seed)
    num_generated = 0
    for batch in range(num_batches):
        if batch % 4 == 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(code_trie, "_MOST_CELLS", 2**20 if batch // 4 % 2 else 0)
                trie, codes = drawn_trie(rng, skewed=bool(batch // 8 % 2))
            assert (trie.levels[0].table_MK is not None) == bool(batch // 4 % 2)
            kept_I = torch.ones(NUM_ITEMS, dtype=torch.bool)
            kept_I[trie.item_P[trie.gone_G].long()] = False
        tables = logit_tables(seed + batch)
        config = CONFIGS[int(rng.integers(len(CONFIGS)))]
        share = rng.choice([1.0, 0.5, 0.02, 0.002, 0.0], p=[0.5, 0.2, 0.1, 0.1, 0.1])
        allow_N = None if share == 1.0 else torch.from_numpy(np.flatnonzero(rng.random(NUM_ITEMS) < share))
        exclude_BE = torch.from_numpy(rng.integers(-1, NUM_ITEMS, (NUM_REQUESTS, 8)))
        for _ in range(2):
            limits = {"exclude_BE": exclude_BE, "allow_N": allow_N}
            hits = beam_search(trie, Adversary(tables), NUM_REQUESTS, K, config, **limits)
            check(hits, trie, codes, tables, config, allow_N, exclude_BE, kept_I)
            exclude_BE = torch.cat([exclude_BE, hits.ids_QK], 1)
            num_generated += NUM_REQUESTS
    return num_generated


def test_twenty_thousand_requests_get_legal_items_alone():
    assert generate(20, seed=0) == 20_000


@pytest.mark.slow
def test_a_hundred_thousand_requests_get_legal_items_alone():
    assert generate(100, seed=10_000) == 100_000


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_broken_logit_at_any_level_is_an_error(level, bad):
    trie, _ = drawn_trie(np.random.default_rng(0), skewed=False)

    class Broken(Adversary):
        def logits(self, parent_BW, code_BW):
            found = super().logits(parent_BW, code_BW)
            if self.level == level + 1:
                found[311, -1, 23] = bad
            return found

    with pytest.raises(ValueError, match=f"level {level + 1}, request 311, hold a NaN or"):
        beam_search(trie, Broken(logit_tables(0)), NUM_REQUESTS, K, BeamConfig(widths=(12,)))
