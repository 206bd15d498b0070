"""The unified model: one pass over a history, from which retrieval and ranking both read.

Suffixes: B = users, C = candidates, D = width, I = items, A = actions, T = packed events, N = packed rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.code_decoder import CodeDecoder, CodeDecoding
from recsys.encoder import Encoder, KeysValues
from recsys.errors import InputError
from recsys.event_tokens import EventTokens
from recsys.events import History
from recsys.files import read_json
from recsys.heads import ActionHead, QueryHead
from recsys.item_codes import ItemCodes
from recsys.item_vectors import ItemVectors
from recsys.layouts import ActionInput, make_layout
from recsys.model_config import ModelConfig
from recsys.packing import CandidateRows, EventBatch, pack_histories
from recsys.parallel_codes import ParallelCodes
from recsys.past_counts import history_counts
from recsys.positive_age import age_after, positive_ages
from recsys.recent import recent_positives
from recsys.set_codes import SetCodes
from recsys.time_features import request_gap
from recsys.user_state import UserStates, pad_packed
from recsys.weight_shapes import check_shapes

__all__ = ["UnifiedModel"]

MICRO_BATCH = 1 << 15
"""Candidate rows of one delta forward; see :attr:`UnifiedModel.micro_batch`."""


class UnifiedModel(nn.Module):
    """Masked action modelling over a history (UniPinRec, arXiv 2606.00422), with a retrieval and a ranking head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.micro_batch = MICRO_BATCH
        """Candidate rows of one delta forward of :meth:`rank`; more are cut into micro-batches (M-FALCON,
        arXiv 2402.17152), which bounds memory and changes no result."""
        self.layout = make_layout(config.layout)
        self.items = ItemVectors(config)
        self.tokens = EventTokens(config)
        self.encoder = Encoder(config)
        self.query_head = QueryHead(config, self.tokens.context.dim + (config.dim if config.user_dim else 0))
        self.action_head = ActionHead(config) if config.use_actions else None
        self.users = nn.Linear(config.user_dim, config.dim, bias=False) if config.user_dim else None
        """Features of a user, zero where they are unknown, to a vector that both heads read."""
        self.start_D = nn.Parameter(torch.zeros(config.dim))
        """Stands for the last output row of an empty history."""
        self.tokens.reset()
        self.codes = ItemCodes(config)
        self.code_decoder = CodeDecoder(config) if config.code_sizes else None
        self.parallel_codes = ParallelCodes(config) if config.parallel_sizes else None
        self.set_codes = SetCodes(config) if config.set_sizes else None

    @property
    def device(self) -> torch.device:
        return self.start_D.device

    # -- packed forward -------------------------------------------------------------------------------------------

    def encode_packed(
        self, batch: EventBatch, hidden_T: Tensor, lookup: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, KeysValues]:
        """Encode a packed batch.

        Args:
            hidden_T: [T] bool, events whose action is hidden.
            lookup: item ids of any shape to vectors [..., D].
        Returns:
            outputs [T · rows per event, D] and packed keys and values.
        """
        rows = self.layout.rows(batch, hidden_T, None)
        x_RD = self._tokens(batch, rows, lookup, batch.position_T, self.positive_ages(batch, hidden_T)[0])
        scale = self.layout.rows_per_event
        groups = tuple(type(g)(g.start * scale, g.num_sequences, g.length * scale) for g in batch.groups)
        out: tuple[Tensor, KeysValues] = self.encoder(
            x_RD, groups, rows.of_events(batch.time_T), rows.of_events(batch.time_known_T)
        )
        return out

    def positive_ages(
        self, batch: EventBatch, hidden_T: Tensor, first_age_S: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[T] age of the last positive event before each event, and the age after it; hidden actions count as none.

        Zeros in a model without ``positive_recency``.
        """
        if not self.config.positive_recency:  # nothing reads them
            return torch.zeros_like(batch.position_T), torch.zeros_like(batch.position_T)
        shown_T = (batch.yes_T & self.config.positive_mask != 0) & ~hidden_T
        first_age_T = None if first_age_S is None else first_age_S.repeat_interleave(batch.lengths_S)
        age_T = positive_ages(shown_T, batch.position_T, first_age_T)
        return age_T, age_after(age_T, shown_T)

    def _tokens(self, batch: EventBatch, rows, lookup, position_T: Tensor, age_T: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        of = rows.of_events
        context = self.tokens.context(of(batch.surface_T), of(batch.time_T), of(batch.time_known_T), of(batch.gap_T))
        tokens: Tensor = self.tokens(lookup(rows.item_R), rows.actions, context, of(position_T), of(age_T))
        return tokens

    def candidate_tokens(
        self,
        vector_ND: Tensor,
        last: ActionInput,
        surface_N: Tensor,
        time_N: Tensor,
        gap_N: Tensor,
        position_N: Tensor,
        age_N: Tensor,
    ) -> Tensor:
        """Tokens of candidates: their own action hidden, time and surface those of the request."""
        context = self.tokens.context(surface_N, time_N, torch.ones_like(time_N, dtype=torch.bool), gap_N)
        tokens: Tensor = self.tokens(vector_ND, self.layout.candidate_actions(last), context, position_N, age_N)
        return tokens

    # -- user states ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        histories: Sequence[History],
        *,
        keep_cache: bool = True,
        user_BK: Tensor | NDArray[np.float32] | None = None,
        item_ID: Tensor | None = None,
    ) -> UserStates:
        """Encode whole histories; the window rule picks what is visible.

        Args:
            histories: one per user, possibly empty.
            keep_cache: False leaves keys and values out, for retrieval alone.
            user_BK: features of the users, rows of zeros where unknown; None = all unknown. Left aside by a model that
                reads none.
            item_ID: ``items.table()`` where the caller keeps it, so that content is not projected again.
        """
        config, device = self.config, self.device
        histories = self.seen(histories)
        first = np.array([config.first_visible(len(h)) for h in histories], dtype=np.int64)
        shown = np.array([len(h) for h in histories], dtype=np.int64) - first
        order = np.argsort(shown, kind="stable")
        batch = pack_histories([histories[i].at(slice(first[i], None)) for i in order]).to(device)
        nothing_hidden_T = torch.zeros_like(batch.time_known_T)
        z_RD, packed = self.encode_packed(batch, nothing_hidden_T, self._lookup(item_ID))
        place = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
        length_B = torch.from_numpy(shown).to(device)
        start_B = batch.offsets_S1[:-1][place]
        last_B = (start_B + length_B - 1).clamp_min(0)
        has_any = length_B > 0
        last_BD = self.start_D.detach().expand(len(histories), -1)
        nothing = torch.zeros_like(length_B)
        time, known, last_yes, last_known, positive_age_B = nothing - 1, has_any, nothing, nothing, nothing
        if len(z_RD):
            last_BD = torch.where(has_any[:, None], self.layout.item_reads(z_RD)[last_B], last_BD)
            time, known = batch.time_T[last_B], has_any & batch.time_known_T[last_B]
            last_yes, last_known = batch.yes_T[last_B], batch.known_T[last_B]
            age_T = self.positive_ages(batch, nothing_hidden_T)[1]
            positive_age_B = torch.where(has_any, age_T[last_B], 0)
        scale = self.layout.rows_per_event
        columns = int(shown.max(initial=0)) * scale if keep_cache else 0

        equal = bool(len(shown)) and shown.min() == shown.max()

        def pad(rows: Tensor) -> Tensor:
            if equal and columns:  # packed rows are the padded ones, in the order of the histories
                return rows.view(len(shown), columns, *rows.shape[1:])
            return pad_packed(rows, start_B * scale, length_B * scale, columns)

        return UserStates(
            cache=[(pad(k), pad(v)) for k, v in packed] if keep_cache else [],
            num_rows_B=length_B * scale,
            num_events_B=torch.tensor([len(h) for h in histories], dtype=torch.int64, device=device),
            first_B=torch.from_numpy(first).to(device),
            time_BL=pad(batch.time_T.repeat_interleave(scale)),
            time_known_BL=pad(batch.time_known_T.repeat_interleave(scale)),
            last_BD=last_BD,
            last_time_B=torch.where(known, time, -1),
            last_actions=ActionInput(last_yes, last_known, ~has_any),
            positive_age_B=positive_age_B,
            recent_BM=recent_positives(histories, config.positive_mask, config.kept).to(device),
            past_BX=self._past_counts(histories),
            user_BD=self.user_vectors(len(histories), user_BK),
        )

    def _lookup(self, item_ID: Tensor | None) -> Callable[[Tensor], Tensor]:
        # The unknown item, −1, is the last row of the table.
        return self.items.rows if item_ID is None else item_ID.__getitem__

    def num_visible(self, history: History) -> int:
        """Rows that encoding a history takes: those of the events in its window."""
        num_events = len(self.seen([history])[0])
        return (num_events - self.config.first_visible(num_events)) * self.layout.rows_per_event

    def user_vectors(self, num_users: int, user_BK: Tensor | NDArray[np.float32] | None) -> Tensor:
        """[B, D] what both heads read of users; [B, 0] where the model reads nothing of them."""
        if self.users is None:
            return torch.zeros(num_users, 0, device=self.device)
        if user_BK is None:
            return torch.zeros(num_users, self.config.dim, device=self.device)
        vectors: Tensor = self.users(torch.as_tensor(user_BK, dtype=torch.float32, device=self.device))
        return vectors

    def _past_counts(self, histories: Sequence[History]) -> Tensor:
        if not self.config.past_rates:
            return torch.zeros(len(histories), 0, dtype=torch.int64, device=self.device)
        counts_BX = history_counts(histories, self.config.num_actions, self.config.num_surfaces)
        return torch.from_numpy(counts_BX).to(self.device)

    def seen(self, histories: Sequence[History]) -> Sequence[History]:
        """What the encoder sees of histories: all, or the positive events alone."""
        if not self.config.positives_only:
            return histories
        return [history.positives(self.config.positive_mask) for history in histories]

    def can_append(self, states: UserStates, num_new: Sequence[int]) -> list[bool]:
        """Whether each state stays valid with so many more events, i.e. its window does not move."""
        total = states.num_events_B.tolist()
        return [
            self.config.first_visible(n + new) == first
            for n, new, first in zip(total, num_new, states.first_B.tolist(), strict=True)
        ]

    @torch.no_grad()
    def append(self, states: UserStates, new_events: Sequence[History], *, item_ID: Tensor | None = None) -> UserStates:
        """Continue cached states with later events: only the new rows are computed.

        Args:
            item_ID: ``items.table()`` where the caller keeps it, so that content is not projected again.

        Raises:
            ValueError: a window would move; encode the whole history instead (see :meth:`can_append`).
        """
        new_events = self.seen(new_events)
        counts = [len(h) for h in new_events]
        for user, fits in enumerate(self.can_append(states, counts)):
            if not fits:
                raise ValueError(
                    f"state {user} cannot take {counts[user]} more events: its window moves; encode() it again"
                )
        device, scale = self.device, self.layout.rows_per_event
        batch = pack_histories(new_events, previous_time=states.last_time_B.cpu().numpy()).to(device)
        nothing_hidden_T = torch.zeros_like(batch.time_known_T)
        rows = self.layout.rows(batch, nothing_hidden_T, states.last_actions)
        age_T, age_after_T = self.positive_ages(batch, nothing_hidden_T, states.positive_age_B)
        count_B = batch.lengths_S
        sequence_T = torch.repeat_interleave(torch.arange(states.num_users, device=device), count_B)
        position_T = (states.num_events_B - states.first_B)[sequence_T] + batch.position_T
        x_RD = self._tokens(batch, rows, self._lookup(item_ID), position_T, age_T)
        columns = max(counts, default=0) * scale
        sequence_R = sequence_T.repeat_interleave(scale)
        row_place = torch.arange(len(x_RD), device=device) - (batch.offsets_S1[:-1] * scale)[sequence_R]
        packing = CandidateRows(
            sequence_Q=torch.arange(states.num_users, device=device),
            place_N=None if len(set(counts)) == 1 else sequence_R * columns + row_place,
            columns=columns,
            item_N=rows.item_R,
            time_N=batch.time_T,
            surface_N=batch.surface_T,
            visible_N=batch.position_T,
        )
        time_BN = packing.pad(batch.time_T.repeat_interleave(scale))
        known_BN = packing.pad(batch.time_known_T.repeat_interleave(scale))
        z_ND, new_cache = self.encoder.delta(
            x_RD, packing, states.cache, states.num_rows_B[:, None].expand(-1, columns), own="causal",
            time_BN=time_BN, time_known_BN=known_BN, time_BL=states.time_BL, time_known_BL=states.time_known_BL,
        )  # fmt: skip
        num_rows_B = states.num_rows_B + count_B * scale
        rows_before = states.num_rows_B.tolist()
        width = max((old + scale * new for old, new in zip(rows_before, counts, strict=True)), default=0)
        # Without padding on either side the new rows stand right after the old ones.
        in_line = packing.place_N is None and set(rows_before) == {states.time_BL.shape[1]}
        at_R = sequence_R * width + states.num_rows_B[sequence_R] + row_place

        def join(old_BL: Tensor, new_BN: Tensor) -> Tensor:
            if in_line:
                return torch.cat([old_BL, new_BN], 1)
            out = old_BL.new_empty(old_BL.shape[0], width, *old_BL.shape[2:])
            keep = min(width, old_BL.shape[1])
            out[:, :keep] = old_BL[:, :keep]
            out[:, keep:] = 0
            out.flatten(0, 1).index_copy_(0, at_R, packing.unpad(new_BN))
            return out

        has_new = count_B > 0
        end_B = (batch.offsets_S1[1:] - 1).clamp_min(0)

        def latest(old_B: Tensor, new_T: Tensor) -> Tensor:
            if not len(new_T):
                return old_B
            new_B = new_T[end_B]
            if all(counts):
                return new_B
            return torch.where(has_new if old_B.dim() == 1 else has_new[:, None], new_B, old_B)

        recent_new_BM = recent_positives(new_events, self.config.positive_mask, self.config.kept).to(device)
        return UserStates(
            cache=[(join(k, nk), join(v, nv)) for (k, v), (nk, nv) in zip(states.cache, new_cache, strict=True)],
            num_rows_B=num_rows_B,
            num_events_B=states.num_events_B + count_B,
            first_B=states.first_B,
            time_BL=join(states.time_BL, time_BN),
            time_known_BL=join(states.time_known_BL, known_BN),
            last_BD=latest(states.last_BD, self.layout.item_reads(z_ND)),
            last_time_B=latest(states.last_time_B, torch.where(batch.time_known_T, batch.time_T, -1)),
            last_actions=ActionInput(
                latest(states.last_actions.yes, batch.yes_T),
                latest(states.last_actions.known, batch.known_T),
                states.last_actions.hidden & ~has_new,
            ),
            positive_age_B=latest(states.positive_age_B, age_after_T),
            recent_BM=_newest_first(recent_new_BM, states.recent_BM),
            past_BX=states.past_BX + self._past_counts(new_events),
            user_BD=states.user_BD,
        )

    # -- requests -------------------------------------------------------------------------------------------------

    def query_packed(
        self, z_RD: Tensor, surface_R: Tensor, time_R: Tensor, time_known_R: Tensor, gap_R: Tensor, user_RD: Tensor
    ) -> Tensor:
        """[R, D] query vectors of output rows at requests of users; ``user_RD`` from :meth:`user_vectors`."""
        context = self.tokens.context(surface_R, time_R, time_known_R, gap_R)
        if self.users is not None:
            context = user_RD if context is None else torch.cat([context, user_RD], -1)
        query: Tensor = self.query_head(z_RD, context)
        return query

    @torch.no_grad()
    def query(self, states: UserStates, at_B: Tensor, surface_B: Tensor) -> Tensor:
        """[B, D]: the learned score of item i is the inner product with ``item_vectors()[i]``."""
        known = torch.ones_like(at_B, dtype=torch.bool)
        gap_B = request_gap(at_B, states.last_time_B)
        return self.query_packed(states.last_BD, surface_B, at_B, known, gap_B, states.user_BD)

    @torch.no_grad()
    def decode(self, states: UserStates, at_B: Tensor, surface_B: Tensor) -> CodeDecoding:
        """Begin to generate semantic IDs, on the keys and values that the states hold.

        Raises:
            ValueError: the model generates none, or the states hold no keys and values.
        """
        if self.code_decoder is None:
            raise ValueError("this model generates no semantic IDs; train it with codes of the items")
        if not states.cache:
            raise ValueError("the states hold no keys and values; encode with keep_cache=True")
        return CodeDecoding(self.code_decoder, states, self.query(states, at_B, surface_B))

    @torch.no_grad()
    def item_vectors(self, is_new_I: Tensor | None = None) -> Tensor:
        """[I, D] float32 vectors of the catalogue for the retrieval index.

        An item without training events and without content has nothing of its own: it stands at the mean of the
        trained items, so that it scores like an average item and not above those with negative scores.

        Args:
            is_new_I: [I] bool, items taken for items without training events; None = those that have none.
        """
        table_ID = self.items.table()[:-1].float()
        trained_I = self.items.has_id_I
        if is_new_I is not None:
            trained_I = trained_I & ~is_new_I
            table_ID = torch.where(is_new_I[:, None], self.items.content_part(), table_ID)
        vectors_ID = self.query_head.item_side(table_ID)
        blank_I = ~trained_I & ~vectors_ID.any(1)
        if not trained_I.any():
            return vectors_ID
        return torch.where(blank_I[:, None], vectors_ID[trained_I].mean(0), vectors_ID)

    @torch.no_grad()
    def rank(
        self,
        states: UserStates,
        item_BC: Tensor,
        at_B: Tensor,
        surface_BC: Tensor,
        feature_BCF: Tensor | None = None,
        item_ID: Tensor | None = None,
    ) -> Tensor:
        """Action logits [B, C, A] of candidates, computed on the cached keys and values (delta forward).

        Args:
            item_BC: [B, C] int64; -1 marks a padded place, whose logits mean nothing.
            at_B: [B] time of the request. surface_BC: [B, C].
            feature_BCF: from :meth:`recsys.candidate_features.CandidateFeatures.of`, for a model that reads some.
            item_ID: ``items.table()`` where the caller keeps it, so that content is not projected again.
        Raises:
            ValueError: the model was trained without actions, the states hold no keys and values, or the features are
                missing.
        """
        logits = self.rank_with_value(states, item_BC, at_B, surface_BC, feature_BCF, item_ID)
        return logits[..., : self.config.num_actions]

    @torch.no_grad()
    def rank_with_value(
        self,
        states: UserStates,
        item_BC: Tensor,
        at_B: Tensor,
        surface_BC: Tensor,
        feature_BCF: Tensor | None = None,
        item_ID: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`rank`, with a last column ln(1 + value) [B, C, A + 1] where the model regresses values."""
        if self.action_head is None:
            raise ValueError("this model has no ranking head: its data has no action with both outcomes")
        if not states.cache:
            raise ValueError("these states hold no keys and values; encode with keep_cache=True")
        if self.action_head.wide is not None and feature_BCF is None:
            raise ValueError(
                "this model ranks with features of candidates; give feature_BCF, from CandidateFeatures.of()"
            )
        step = max(1, self.micro_batch // max(1, states.num_users))
        cuts = [slice(low, low + step) for low in range(0, item_BC.shape[1], step)]
        parts = [
            self._rank_rows(
                states,
                item_BC[:, cut],
                at_B,
                surface_BC[:, cut],
                None if feature_BCF is None else feature_BCF[:, cut],
                self._lookup(item_ID),
            )  # fmt: skip
            for cut in cuts
        ]
        if not parts:
            return self.start_D.new_zeros(*item_BC.shape, self.config.num_actions + self.config.regress_value)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    @torch.no_grad()
    def attention(self, states: UserStates, item_BC: Tensor, at_B: Tensor, surface_BC: Tensor) -> list[Tensor]:
        """Per layer [B, C, H, L] attention weights of candidates over cached rows: what :meth:`rank` reads by.

        Raises:
            ValueError: the states hold no keys and values.
        """
        if not states.cache:
            raise ValueError("these states hold no keys and values; encode with keep_cache=True")
        weights: list[Tensor] = []
        self._candidates(states, item_BC, at_B, surface_BC, self.items.rows, weights)
        return weights

    def _rank_rows(
        self,
        states: UserStates,
        item_BC: Tensor,
        at_B: Tensor,
        surface_BC: Tensor,
        feature_BCF: Tensor | None,
        lookup: Callable[[Tensor], Tensor],
    ) -> Tensor:
        num_users, columns = item_BC.shape
        z_ND, vector_ND = self._candidates(states, item_BC, at_B, surface_BC, lookup)
        assert self.action_head is not None
        feature_NF = None if feature_BCF is None else feature_BCF.flatten(0, 1)
        user_ND = states.user_BD.repeat_interleave(columns, 0)
        logits = self.action_head(z_ND, vector_ND, feature_RF=feature_NF, user_RD=user_ND)
        return logits.view(num_users, columns, logits.shape[-1]).float()

    def _candidates(
        self,
        states: UserStates,
        item_BC: Tensor,
        at_B: Tensor,
        surface_BC: Tensor,
        lookup: Callable[[Tensor], Tensor],
        weights: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[N, D] output rows of candidates, and their item vectors."""
        num_users, columns = item_BC.shape
        each = torch.arange(num_users, device=item_BC.device).repeat_interleave(columns)
        rows = CandidateRows(
            sequence_Q=torch.arange(num_users, device=item_BC.device), place_N=None, columns=columns,
            item_N=item_BC.flatten(), time_N=at_B[each], surface_N=surface_BC.flatten(),
            visible_N=(states.num_events_B - states.first_B)[each],
        )  # fmt: skip
        vector_ND = lookup(rows.item_N)
        x_ND = self.candidate_tokens(
            vector_ND, states.last_actions.at(each), rows.surface_N, rows.time_N,
            request_gap(at_B, states.last_time_B)[each], rows.visible_N, states.positive_age_B[each],
        )  # fmt: skip
        z_ND, _ = self.encoder.delta(
            x_ND, rows, states.cache, states.num_rows_B[:, None], own="self",
            time_BN=at_B[:, None], time_known_BN=torch.ones_like(at_B, dtype=torch.bool)[:, None],
            time_BL=states.time_BL, time_known_BL=states.time_known_BL, weights=weights,
        )  # fmt: skip
        return z_ND, vector_ND

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n")
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors"
        )

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> UnifiedModel:
        """Read what :meth:`save` wrote, in evaluation mode.

        Raises:
            InputError: a file is missing, broken or belongs to another configuration.
        """
        config = ModelConfig.from_dict(read_json(folder / "model.json"))
        try:
            weights = load_file(folder / "model.safetensors")
        except (FileNotFoundError, SafetensorError) as error:
            raise InputError(
                f"{folder / 'model.safetensors'} cannot be read ({error}); export the bundle again"
            ) from None
        return cls.of_weights(config, weights, str(folder), "export the bundle again").to(device)

    @classmethod
    def of_weights(cls, config: ModelConfig, weights: Mapping[str, Tensor], where: str, remedy: str) -> UnifiedModel:
        """A model of stored weights, in evaluation mode.

        Names and shapes are compared before memory of the size that the configuration names is taken.

        Args:
            where, remedy: the beginning and the end of the message.

        Raises:
            InputError: the weights are those of another configuration, or not finite.
        """
        check_shapes(config, weights, where, remedy)
        model = cls(config)
        try:
            model.load_state_dict(dict(weights))
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()[:200]
            raise InputError(f"{where} holds weights of another model ({line}); {remedy}") from None
        for kind in model.codes.sizes:
            model.codes.check(kind, model.codes.of(kind))
        return model.eval()


def _newest_first(new_BM: Tensor, old_BM: Tensor) -> Tensor:
    both = torch.cat([new_BM, old_BM], 1)
    order = (both < 0).to(torch.int8).argsort(dim=1, stable=True)
    return both.gather(1, order)[:, : old_BM.shape[1]]
