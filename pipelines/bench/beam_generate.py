"""The model of :mod:`recsys.pipelines.bench.beam` driven by ``generate`` of Hugging Face transformers.

The weights are the same: the wrapper calls the blocks of the decoder, the history is encoded once by the same encoder,
and its keys and values are those that the blocks read. The cache of the codes so far is transformers' own. Two ways of
holding the history: in the ``EncoderDecoderCache``, as transformers' own encoder-decoder models do, where ``generate``
copies it for every beam and moves it with the beams after each level; or, kinder than that, all beams read the one copy
there is.

One vocabulary of K codes serves all levels, which makes the masks and the top-k of ``generate`` as small as can be.

Suffixes: B = requests, W = beams, N = B · W rows, M = rows of a history, H = heads, E = head width, D = width,
K = codes of a level, L = levels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput

from recsys.code_decoder import CodeDecoder, StateReader
from recsys.index.code_trie import CodeTrie
from recsys.user_state import UserStates

__all__ = ["DictTrie", "Generator"]


class DictTrie(dict[tuple[int, ...], list[int]]):
    """Prefixes to the codes that may follow: what ``prefix_allowed_tokens_fn`` looks up.

    An entry is made when it is first asked for, since those of a million items take minutes and gigabytes; whatever a
    timed call looks up was made by the calls before.
    """

    def __init__(self, trie: CodeTrie) -> None:
        super().__init__()
        self.trie = trie

    def __missing__(self, prefix: tuple[int, ...]) -> list[int]:
        node = torch.zeros(1, 1, dtype=torch.int64)
        for number, level in enumerate(self.trie.levels):
            child_C, code_C = (part.flatten() for part in level.children(node))
            child_C, code_C = child_C[child_C >= 0], code_C[child_C >= 0]
            if number == len(prefix):
                return self.setdefault(prefix, code_C.tolist())
            node = child_C[code_C == prefix[number]].view(1, 1)
        raise KeyError(prefix)

    def allowed(self, request: int, token_L: Tensor) -> list[int]:
        """Codes that may follow; the first token is the start token."""
        return self[tuple(token_L.tolist()[1:])]


class _Config(PretrainedConfig):
    model_type = "recsys-codes"

    def __init__(self, vocab_size: int = 0, num_hidden_layers: int = 1, **others: Any) -> None:
        super().__init__(is_encoder_decoder=True, **others)
        self.decoder_start_token_id = 0
        self.vocab_size, self.num_hidden_layers = vocab_size, num_hidden_layers


class Generator(PreTrainedModel, GenerationMixin):
    """A decoder of codes as ``generate`` wants it."""

    config_class = _Config
    main_input_name = "input_ids"

    def __init__(self, decoder: CodeDecoder) -> None:
        """All levels must have as many codes."""
        super().__init__(_Config(decoder.sizes[0], len(decoder.blocks)))
        self.decoder = decoder
        self.shared: UserStates | None = None
        self.num_requests = 0
        self.pair_BP: Tensor | None = None

    def get_encoder(self, modality: str | None = None) -> torch.nn.Module:
        return self.decoder  # never called: encoder outputs are given

    @torch.no_grad()
    def search(
        self, states: UserStates, query_BD: Tensor, trie: DictTrie, num_beams: int, *, copied: bool
    ) -> tuple[Tensor, Tensor]:
        """[B, W, L] codes, best first, and [B, W] their log-probabilities.

        Args:
            states: of the histories. query_BD: query vectors of dense retrieval.
            trie: the constraint.
            num_beams: W.
            copied: whether every beam holds keys and values of the history.
        """
        given: dict[str, Tensor] = {"last_hidden_state": query_BD[:, None]}
        if copied:
            row_M = torch.arange(states.cache[0][0].shape[1])
            given["visible"] = (row_M < states.num_rows_B[:, None])[:, None, None]
            given |= {f"keys_{layer}": keys for layer, (keys, _) in enumerate(states.cache)}
            given |= {f"values_{layer}": values for layer, (_, values) in enumerate(states.cache)}
        self.shared, self.num_requests = None if copied else states, states.num_users
        driven: Any = self  # the types of transformers name one result for every kind of search
        found = driven.generate(
            encoder_outputs=ModelOutput(given),
            prefix_allowed_tokens_fn=trie.allowed,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=len(self.decoder.sizes),
            length_penalty=0.0,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_scores=True,
        )
        shape = (states.num_users, num_beams)
        code_BWL: Tensor = found.sequences[:, 1:].view(*shape, -1)
        return code_BWL, found.sequences_scores.view(shape)

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: ModelOutput,
        past_key_values: EncoderDecoderCache,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        return_dict: bool = True,
    ) -> Seq2SeqLMOutput:
        """Logits [N, 1, K] of the next level."""
        decoder, cache = self.decoder, past_key_values.self_attention_cache
        level = cache.get_seq_length()
        query_ND = encoder_outputs["last_hidden_state"][:, 0]
        x_N1D = decoder.token(level, query_ND if level == 0 else decoder_input_ids[:, -1])[:, None]
        blocks: list[Any] = list(decoder.blocks)
        for number, block in enumerate(blocks):
            q, k, v = (part.transpose(1, 2) for part in block.own(x_N1D))
            k, v = cache.update(k, v, number)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x_N1D = block.finish(x_N1D, attended, partial(self._read, encoder_outputs, past_key_values, number))
        logit_N1K = decoder.logits(level, x_N1D, self._prior(level, query_ND, decoder_input_ids[:, -1]))
        return Seq2SeqLMOutput(logits=logit_N1K, past_key_values=past_key_values)

    def _prior(self, level: int, query_ND: Tensor, code_N: Tensor) -> Tensor:
        """[N, 1, K] of :meth:`CodeDecoder.prior`: what is the same for all beams of a request is made once."""
        decoder, rows = self.decoder, len(query_ND) // self.num_requests
        query_BD = query_ND[::rows]
        if level == 0:
            self.pair_BP = decoder.pair_scores(query_BD)
        prior_BWK = decoder.prior(level, query_BD, self.pair_BP, code_N.view(self.num_requests, rows))
        return prior_BWK.expand(-1, rows, -1).flatten(0, 1)[:, None]

    def _read(self, given: ModelOutput, cache: EncoderDecoderCache, number: int, query_N1HE: Tensor) -> Tensor:
        """[N, 1, H, E] attention of a block to the history."""
        layer = self.decoder.layers[number]
        if self.shared is not None:
            query_BWHE = query_N1HE.view(self.shared.num_users, -1, *query_N1HE.shape[2:])
            return StateReader(self.shared)(layer, query_BWHE).reshape(query_N1HE.shape)
        # As in the encoder-decoder models of transformers: kept by the cache from the first level on.
        held: Any = cache.cross_attention_cache
        if cache.is_updated.get(number):
            keys, values = held.layers[number].keys, held.layers[number].values
        else:
            parts = (given[f"{kind}_{layer}"].transpose(1, 2) for kind in ("keys", "values"))
            keys, values = held.update(*parts, number)
            cache.is_updated[number] = True
        found = F.scaled_dot_product_attention(query_N1HE.transpose(1, 2), keys, values, given["visible"])
        return found.transpose(1, 2)
