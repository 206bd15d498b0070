"""The head that generates semantic IDs, code by code, from the keys and values that the encoder left of a history.

The history is not encoded again and nothing of it is projected again: a block's queries read the keys and values of an
encoder layer as they are (lazy decoder of OneRec-V2, arXiv 2508.20900). The first token is the query vector of dense
retrieval, so that time and surface of the request enter here too; every further token is the code before.

Suffixes: N = rows (prefixes), L = levels, D = width, K = codes of a level, S = sequences of equal length, C = rows of a
sequence, B = requests, W = beams, M = rows of a history, H = heads, E = head width, P = pairs of a first and a second
code, T = second codes that follow a first one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.attention import Group
from recsys.code_vectors import code_means, nested_vectors
from recsys.dropout import Dropout
from recsys.embedding_table import EmbeddingTable
from recsys.encoder import KeysValues
from recsys.model_config import ModelConfig
from recsys.shared_attention import NEVER, attend_shared, shared_bias
from recsys.user_state import UserStates

__all__ = [
    "CodeDecoder",
    "CodeDecoding",
    "HistoryReader",
    "PackedReader",
    "ReadBlock",
    "StateReader",
    "layers_read",
    "start_weights",
]

_SMALLEST = 1e-30
_PAIR_SCORES, _PAIR_SCORES_CPU = 2**26, 2**21
"""Scores of pairs at once in training. On a core 2,048 rows and 9,900 pairs take half as long
as all at once; of 8,192 rows and 65,536 pairs a copy takes 8 MiB, not 2 GiB."""


class HistoryReader(Protocol):
    """Softmax attention of queries to what each of them may see of a history."""

    def __call__(self, layer: int, query: Tensor) -> Tensor:
        """[N, L, H, E] attention of [N, L, H, E] queries to an encoder layer; 0 where there is no history."""
        ...


class PackedReader:
    """Rows of a packed training batch: row n reads the first ``visible_N[n]`` cached rows of its sequence."""

    def __init__(
        self, cache: KeysValues, groups: Sequence[Group], num_sequences: int, sequence_N: Tensor, visible_N: Tensor
    ) -> None:
        """Sort the rows by the groups of their sequences.

        Args:
            cache: packed keys and values [T, H, E] of every layer.
            groups: of sequences of equal length, in rows of the cache, in order.
            num_sequences: with the empty ones, which come first and are in no group.
            sequence_N: [N] sequence of each row. visible_N: [N] cached rows that it reads.
        """
        self.cache, self.visible_N = cache, visible_N
        self.parts: list[tuple[Group, Tensor, Tensor, int]] = []
        first = num_sequences - sum(group.num_sequences for group in groups)
        for group in groups:
            inside_N = (sequence_N >= first) & (sequence_N < first + group.num_sequences) & (visible_N > 0)
            row_R = inside_N.nonzero().flatten()
            if len(row_R):
                local_R = sequence_N[row_R] - first
                local_R, order_R = local_R.sort(stable=True)
                count_S = torch.bincount(local_R, minlength=group.num_sequences)
                column_R = torch.arange(len(row_R), device=row_R.device) - (count_S.cumsum(0) - count_S)[local_R]
                columns = int(count_S.max())
                self.parts.append((group, row_R[order_R], local_R * columns + column_R, columns))
            first += group.num_sequences

    def __call__(self, layer: int, query: Tensor) -> Tensor:
        keys, values = self.cache[layer]
        out = torch.zeros_like(query)
        for group, row_R, place_R, columns in self.parts:
            shape = (group.num_sequences * columns, *query.shape[1:])
            padded = query.new_zeros(shape).index_copy(0, place_R, query[row_R])
            query_SCHE = padded.view(group.num_sequences, columns * query.shape[1], *query.shape[2:])
            visible_X = self.visible_N.new_ones(shape[0]).index_copy(0, place_R, self.visible_N[row_R])
            visible_SC = visible_X.view(group.num_sequences, columns).repeat_interleave(query.shape[1], 1)
            rows = slice(group.start, group.start + group.num_sequences * group.length)
            history = (group.num_sequences, group.length, *keys.shape[1:])
            found = _attend(query_SCHE, keys[rows].view(history), values[rows].view(history), visible_SC)
            out = out.index_copy(0, row_R, found.reshape(shape)[place_R])
        return out


class StateReader:
    """Beams of requests: all beams of a request read the same cached rows, of which there is one copy."""

    def __init__(self, states: UserStates) -> None:
        self.states = states
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}
        """Per layer keys [B · H, E, M], scaled, and values [B · H, M, E], as the products of every level want them."""
        num_rows = states.cache[0][0].shape[1] if states.cache else 0
        row_M = torch.arange(num_rows, device=states.num_rows_B.device)
        hidden_BM = row_M >= states.num_rows_B[:, None]
        self.hidden_BM = hidden_BM if bool(hidden_BM.any()) else None

    def __call__(self, layer: int, query: Tensor) -> Tensor:
        """[B, W, H, E] for [B, W, H, E] queries."""
        num_requests, num_beams, num_heads, width = query.shape
        if not self.states.cache[layer][0].shape[1]:
            return torch.zeros_like(query)
        query_XWE = query.transpose(1, 2).reshape(-1, num_beams, width)
        read_XWE = attend_shared(query_XWE, *self._rows(layer), self._bias(num_heads), kind="softmax").read_XNE
        return read_XWE.view(num_requests, num_heads, num_beams, width).transpose(1, 2)

    def _bias(self, num_heads: int) -> Tensor | None:
        hidden_BM = self.hidden_BM
        if hidden_BM is None:
            return None
        bias_BM = torch.zeros(hidden_BM.shape, device=hidden_BM.device).masked_fill_(hidden_BM, NEVER)
        return bias_BM.repeat_interleave(num_heads, 0)[:, None]

    def _rows(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self.rows:
            keys, values = self.states.cache[layer]
            key_XEM = keys.permute(0, 2, 3, 1).flatten(0, 1) * keys.shape[-1] ** -0.5
            # Without a row to read nothing is read, whatever the weights say.
            nothing_B = self.states.num_rows_B == 0
            value_BHME = values.transpose(1, 2).masked_fill(nothing_B[:, None, None, None], 0.0)
            self.rows[layer] = key_XEM, value_BHME.flatten(0, 1)
        return self.rows[layer]


def _attend(query_SCHE: Tensor, key_SMHE: Tensor, value_SMHE: Tensor, visible_SC: Tensor) -> Tensor:
    num_sequences, num_rows, num_heads, width = query_SCHE.shape
    query_XCE = query_SCHE.transpose(1, 2).flatten(0, 1) * width**-0.5
    key_XEM, value_XME = key_SMHE.permute(0, 2, 3, 1).flatten(0, 1), value_SMHE.transpose(1, 2).flatten(0, 1)
    bias = shared_bias(None, visible_SC, key_SMHE.shape[1], num_heads)
    read_XCE = attend_shared(query_XCE, key_XEM, value_XME, bias, kind="softmax").read_XNE
    read_SCHE = read_XCE.view(num_sequences, num_heads, num_rows, width).transpose(1, 2)
    return read_SCHE * (visible_SC > 0)[:, :, None, None]


class ReadBlock(nn.Module):
    """Pre-norm: attention to the history and a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.norm_history, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.norm_read, self.out_history = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, config.ffn_factor * dim), nn.Linear(config.ffn_factor * dim, dim)
        self.dropout = Dropout(config.code_dropout)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def read(self, x: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., D] what rows [..., D] make of the history.

        Args:
            read: attention of [..., H, E] queries to it.
        """
        history = read(self.heads(self.query(self.norm_history(x))))
        # Values of HSTU layers have another scale in every layer and model.
        x = x + self.dropout(self.out_history(self.norm_read(history.flatten(-2))))
        return x + self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm_ffn(x))))))


class _Block(ReadBlock):
    """Pre-norm: attention to the codes so far, to the history, and a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.norm_own = nn.LayerNorm(dim)
        self.qkv, self.out_own = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def own(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., H, E] for attention to the codes so far."""
        q, k, v = self.qkv(self.norm_own(x)).chunk(3, -1)
        return self.heads(q), self.heads(k), self.heads(v)

    def finish(self, x: Tensor, attended: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """The block's output from its input and [..., H, E] attention to the codes so far."""
        return self.read(x + self.dropout(self.out_own(attended.flatten(-2))), read)


def layers_read(num_blocks: int, num_layers: int) -> list[int]:
    """The encoder layer that each block of a head reads: the last one by the last block.

    >>> layers_read(3, 2)
    [1, 0, 1]
    """
    return [num_layers - 1 - place % num_layers for place in range(num_blocks)][::-1]


class CodeDecoder(nn.Module):
    """Autoregressive decoder of semantic IDs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sizes = config.code_sizes
        self.start = nn.Linear(config.dim, config.dim)
        self.codes = nn.ModuleList(EmbeddingTable(size, config.dim) for size in self.sizes[:-1])
        self.level_LD = nn.Parameter(torch.zeros(len(self.sizes), config.dim))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.code_blocks))
        self.layers = layers_read(config.code_blocks, config.num_blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.out = nn.ModuleList(nn.Linear(config.dim, size) for size in self.sizes)
        self.prior_L = nn.Parameter(torch.ones(len(self.sizes)))
        """How much each level believes of the inner products of the query with its codebook."""
        for level, size in enumerate(self.sizes):
            self.register_buffer(f"codebook_{level}", torch.zeros(size, config.dim))
        self.pairs = PairVectors(config) if config.code_pairs else None
        self.apply(start_weights)

    def token(self, level: int, start_or_code: Tensor) -> Tensor:
        """[..., D] input of a level: from the query vector [..., D] at the first one, from codes [...] later."""
        scale = self.level_LD.shape[1] ** 0.5
        found = self.start(start_or_code) if level == 0 else self.codes[level - 1](start_or_code) * scale
        token: Tensor = found + self.level_LD[level]
        return token

    def set_codebooks(self, codebooks: Sequence[Tensor] | None) -> None:
        """Start from what dense retrieval thinks of each code.

        An item's vector is about the sum of the residual centroids of its codes, so that its dense score is about the
        sum of theirs: what is left to learn is how much lies below each prefix.

        Args:
            codebooks: per level [K, D], centroids of the model's own item vectors; None = the codes are of other
                vectors, and every logit is learned.
        """
        for level in range(len(self.sizes)):
            book = self.codebook(level)
            book.zero_() if codebooks is None else book.copy_(codebooks[level])

    def codebook(self, level: int) -> Tensor:
        """[K, D] of a level, zero where the codes are not those of the item vectors."""
        return self.get_buffer(f"codebook_{level}")

    def pair_scores(self, query_BD: Tensor) -> Tensor | None:
        """[B, P] logits of pairs of codes; None where they have no vectors."""
        return None if self.pairs is None else self.pairs.scores(query_BD.detach())

    def prior(self, level: int, query_BD: Tensor, pair_BP: Tensor | None, first_BW: Tensor | None) -> Tensor:
        """[B, W, K] what dense retrieval thinks of the codes of a level, W = 1 where it is the same for all prefixes.

        Args:
            pair_BP: of :meth:`pair_scores`. first_BW: [B, W] int64 first codes, for the second level.
        """
        by_codes_B1K = (query_BD @ self.codebook(level).T)[:, None]
        if pair_BP is None or self.pairs is None or level > 1:
            return self.prior_L[level] * by_codes_B1K
        if level == 0:
            return self.pairs.first(pair_BP)[:, None]
        assert first_BW is not None
        above_BW = (query_BD @ self.codebook(0).T).gather(1, first_BW)
        return self.pairs.second(pair_BP, first_BW, above_BW[..., None] + by_codes_B1K)

    def logits(self, level: int, x_BWD: Tensor, prior_BWK: Tensor) -> Tensor:
        """[B, W, K] logits of a level from the output of the last block and :meth:`prior`."""
        found: Tensor = self.out[level](self.norm(x_BWD)) + prior_BWK
        return found

    @torch.no_grad()
    def start_from(self, vectors_ID: Tensor, code_IL: Tensor) -> None:
        """Start from what dense retrieval thinks of each prefix.

        Args:
            vectors_ID: [I, D] item vectors of dense retrieval. code_IL: [I, L] int64 codes.
        """
        self.set_codebooks(nested_vectors(vectors_ID, code_IL, self.sizes))
        if self.pairs is not None:
            self.pairs.start_from(vectors_ID, code_IL)

    def forward(self, query_ND: Tensor, code_NL: Tensor, read: HistoryReader, *, alike: int = 1) -> list[Tensor]:
        """Logits of every level, each given the codes before it.

        Args:
            query_ND: [N, D] query vectors of dense retrieval. code_NL: [N, L] codes of the targets; the last ones are
                not read.
            read: attention of [N, L, H, E] queries to the history.
            alike: so many rows, one after the other, have the same query.

        Returns:
            per level [N, K].
        """
        tokens = [self.token(0, query_ND)]
        tokens += [self.token(level, code_NL[:, level - 1]) for level in range(1, len(self.sizes))]
        x_NLD = torch.stack(tokens, 1)
        for block, layer in zip(self.blocks, self.layers, strict=True):
            assert isinstance(block, _Block)
            q, k, v = (part.transpose(1, 2) for part in block.own(x_NLD))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x_NLD = block.finish(x_NLD, attended, lambda query, layer=layer: read(layer, query))  # type: ignore[misc]
        found = []
        for level, prior_BWK in enumerate(self._priors(query_ND[::alike], code_NL[:, 0].view(-1, alike))):
            prior_N1K = prior_BWK.expand(-1, alike, -1).flatten(0, 1)[:, None]
            found.append(self.logits(level, x_NLD[:, level, None], prior_N1K)[:, 0])
        return found

    def _priors(self, query_BD: Tensor, first_BW: Tensor) -> list[Tensor]:
        """Per level of :meth:`prior`, for so many queries at once that their scores of pairs stay few."""
        num_pairs = 0 if self.pairs is None else len(self.pairs.second_P)
        most = _PAIR_SCORES_CPU if query_BD.device.type == "cpu" else _PAIR_SCORES
        rows = max(1, most // max(1, num_pairs))
        found = []
        for query_RD, first_RW in zip(query_BD.split(rows), first_BW.split(rows), strict=True):
            pair_RP = self.pair_scores(query_RD)
            found.append([self.prior(level, query_RD, pair_RP, first_RW) for level in range(len(self.sizes))])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]


class PairVectors(nn.Module):
    """What dense retrieval thinks of the pairs of a first and a second code that items had when the decoder was made.

    Codebooks know a second code by itself, but items that share it under different first codes need not be alike: on
    validation of Amazon Toys the sums of three codebooks' vectors find .099 of the targets among ten items, dense
    retrieval .137. A pair has the mean vector of its items and the logarithm of their number; a first code has what its
    pairs have together. A pair that came later is known by its codes alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first_size, self.size = config.code_sizes[:2]
        self.register_buffer("vector_PD", torch.zeros(config.code_pairs, config.dim))
        self.register_buffer("log_count_P", torch.zeros(config.code_pairs))
        self.register_buffer("second_P", torch.zeros(config.code_pairs, dtype=torch.int64))
        self.register_buffer("first_K1", torch.zeros(first_size + 1, dtype=torch.int64))

    vector_PD: Tensor
    log_count_P: Tensor
    second_P: Tensor
    first_K1: Tensor
    """The pairs of first code k stand at ``first_K1[k]`` up to ``first_K1[k + 1]``, second codes rising."""

    @torch.no_grad()
    def start_from(self, vectors_ID: Tensor, code_IL: Tensor) -> None:
        """Hold the mean vectors of the pairs of items."""
        key_P, pair_I = torch.unique(code_IL[:, 0] * self.size + code_IL[:, 1], return_inverse=True)
        first_P, num_first = torch.div(key_P, self.size, rounding_mode="floor"), len(self.first_K1) - 1
        self.vector_PD.copy_(code_means(vectors_ID, pair_I, len(key_P)))
        self.log_count_P.copy_(torch.bincount(pair_I, minlength=len(key_P)).log())
        self.second_P.copy_(key_P % self.size)
        self.first_K1.copy_(F.pad(torch.bincount(first_P, minlength=num_first).cumsum(0), (1, 0)))

    def scores(self, query_BD: Tensor) -> Tensor:
        """[B, P] logits of pairs: about the logarithm of what a softmax over items gives theirs, up to a constant."""
        score_PB = torch.addmm(self.log_count_P[:, None], self.vector_PD, query_BD.T)
        return score_PB.T  # pairs stand in rows, as the sums over them want it

    def first(self, score_BP: Tensor) -> Tensor:
        """[B, K] logits of first codes, those of their pairs together; very small for codes without any."""
        score_PB = score_BP.T.contiguous()
        peak_B = score_BP.contiguous().amax(1)  # three times as fast as along the columns, the copy included
        sum_KB = torch.segment_reduce((score_PB - peak_B).exp_(), "sum", offsets=self.first_K1, axis=0)
        return (sum_KB.clamp_min_(_SMALLEST).log_() + peak_B).T

    def second(self, score_BP: Tensor, first_BW: Tensor, by_codes_BWK: Tensor) -> Tensor:
        """[B, W, K] logits of second codes after first ones.

        Args:
            by_codes_BWK: those of pairs without a vector, which the others take the place of.
        """
        low_BW = self.first_K1[first_BW]
        count_BW = self.first_K1[first_BW + 1] - low_BW
        step_T = torch.arange(int(count_BW.max()) if count_BW.numel() else 0, device=first_BW.device)
        missing_BWT = step_T >= count_BW[..., None]
        pair_BWT = (low_BW[..., None] + step_T).masked_fill_(missing_BWT, 0)
        score_BWT = score_BP.gather(1, pair_BWT.flatten(1)).view(pair_BWT.shape)
        code_BWT = self.second_P[pair_BWT].masked_fill_(missing_BWT, self.size)
        return F.pad(by_codes_BWK, (0, 1)).scatter_(2, code_BWT, score_BWT)[..., : self.size]


class CodeDecoding:
    """One decoding of a batch of requests; see :class:`recsys.retrieval.beam_search.Decoding`.

    Keys and values of the codes so far are kept level by level and never reordered: a beam finds those of its
    ancestors by the places that the search names.
    """

    def __init__(self, decoder: CodeDecoder, states: UserStates, query_BD: Tensor) -> None:
        self.decoder, self.query_BD = decoder, query_BD
        self.read = StateReader(states)
        self.level = 0
        self.pair_BP: Tensor | None = None
        self.ancestor_BW: list[Tensor] = []
        """For every earlier level the place of each beam's ancestor in it."""
        self.kept: list[Tensor] = []
        """Per earlier level the keys and values of all blocks, [B · W, blocks · 2 · D]."""

    @torch.no_grad()
    def logits(self, parent_BW: Tensor | None, code_BW: Tensor | None) -> Tensor:
        """[B, W, K] logits of the next level."""
        decoder = self.decoder
        if parent_BW is None or code_BW is None:
            x_BWD = decoder.token(0, self.query_BD)[:, None]
        else:
            x_BWD = decoder.token(self.level, code_BW)
            self._move(parent_BW)
        past = self._past(*x_BWD.shape[:2])
        own = []
        for number, (block, layer) in enumerate(zip(decoder.blocks, decoder.layers, strict=True)):
            assert isinstance(block, _Block)
            qkv_BW3D = block.qkv(block.norm_own(x_BWD))
            attended = _attend_past(qkv_BW3D, [level[:, :, number] for level in past], block.num_heads)
            x_BWD = block.finish(x_BWD, attended, partial(self.read, layer))
            own.append(qkv_BW3D[..., x_BWD.shape[-1] :])
        if self.level + 1 < len(decoder.sizes):
            self.kept.append(torch.cat(own, -1).flatten(0, 1))
        if self.level == 0:
            self.pair_BP = decoder.pair_scores(self.query_BD)
        logits = decoder.logits(self.level, x_BWD, decoder.prior(self.level, self.query_BD, self.pair_BP, code_BW))
        self.level += 1
        return logits

    def _move(self, parent_BW: Tensor) -> None:
        """Continue beams: their ancestors are those of their parents, and the parents."""
        self.ancestor_BW = [place_BW.gather(1, parent_BW) for place_BW in self.ancestor_BW]
        self.ancestor_BW.append(parent_BW)

    def _past(self, num_requests: int, num_beams: int) -> list[Tensor]:
        """Per earlier level [B, W, blocks, 2 · D] keys and values of each beam's ancestor."""
        found = []
        for kept_XF, place_BW in zip(self.kept, self.ancestor_BW, strict=True):
            before = len(kept_XF) // num_requests
            first_B1 = torch.arange(0, len(kept_XF), before, device=kept_XF.device)[:, None]
            rows = kept_XF.index_select(0, (place_BW + first_B1).flatten())
            found.append(rows.view(num_requests, num_beams, len(self.decoder.blocks), -1))
        return found


def _attend_past(qkv_BW3D: Tensor, past: list[Tensor], num_heads: int) -> Tensor:
    """[B, W, H, E] softmax attention of beams to their ancestors, [B, W, 2 · D] each, and themselves."""
    query, *own = qkv_BW3D.unflatten(-1, (3, num_heads, -1)).unbind(2)
    if not past:
        return own[1]
    every = [level.unflatten(-1, (2, num_heads, -1)).unbind(2) for level in past] + [tuple(own)]
    query = query * query.shape[-1] ** -0.5
    weight_BWHL = torch.stack([(query * keys).sum(-1) for keys, _ in every], -1).softmax(-1)
    attended = weight_BWHL[..., :1] * every[0][1]
    for place, (_, values) in enumerate(every[1:], 1):
        attended.addcmul_(weight_BWHL[..., place : place + 1], values)
    return attended


def start_weights(module: nn.Module) -> None:
    """Small random weights and zero biases of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
