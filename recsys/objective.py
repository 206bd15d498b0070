"""L = L_item + L_action + L_code of one packed batch, in one stage.

Suffixes: T = packed events, N = rows of one kind, D = width, I = items, A = actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.candidate_features import features_without_surface
from recsys.code_children import CodeChildren
from recsys.code_decoder import CodeDecoder, PackedReader
from recsys.code_distillation import CodeDistillation
from recsys.encoder import KeysValues
from recsys.event_tokens import action_bits
from recsys.layouts import ActionInput
from recsys.losses import action_loss, full_softmax_loss_sum, pairwise_loss, sampled_softmax_loss_sum
from recsys.model import UnifiedModel
from recsys.neighbour_targets import NeighbourTargets
from recsys.packing import CandidateRows, EventBatch
from recsys.parallel_codes import ParallelCodes
from recsys.time_features import UNKNOWN_GAP
from recsys.training_batches import TrainingBatch
from recsys.user_state import pad_packed

__all__ = ["Losses", "Objective"]


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of a batch in nats; ``total`` is what is minimised."""

    total: Tensor
    item: Tensor
    """Mean over retrieval targets."""
    action: Tensor
    """Sum over actions of the mean over known labels, hidden history positions plus slate candidates."""
    num_targets: int
    code: Tensor | None = None
    """Mean over retrieval targets of −log p of all their codes; None in a model without a decoder of codes."""


class Objective:
    """Losses of a :class:`UnifiedModel`.

    Args:
        item_counts_I: [I] training events per item; items without any stay out of softmax denominators.
        neighbours: spreads the labels of retrieval targets to similar items; None = not.
    """

    def __init__(self, model: UnifiedModel, item_counts_I: Tensor, neighbours: NeighbourTargets | None = None) -> None:
        self.model, self.neighbours = model, neighbours
        self.distillation: CodeDistillation | None = None
        """Labels that the heads of semantic IDs learn from beside the targets; None = from these alone."""
        self.trains_codes = True
        """Whether the heads of semantic IDs take part: not before their codes mean something."""
        self.codes_changed()
        trained_J = (item_counts_I > 0).nonzero().flatten()
        self.trained_J = trained_J
        self.all_trained = len(trained_J) == len(item_counts_I)
        self.compact_I = torch.full((len(item_counts_I),), -1, dtype=torch.int64)
        self.compact_I[trained_J] = torch.arange(len(trained_J))
        self.log_share_I = torch.log(item_counts_I.double().clamp_min(1) / item_counts_I.sum().clamp_min(1)).float()

    def codes_changed(self) -> None:
        """Look at the model's codes anew."""
        model = self.model
        self.children: CodeChildren | None = None
        if model.code_decoder is not None and model.config.code_children:
            self.children = CodeChildren.of(model.codes.of("codes"), model.config.code_sizes)

    def to(self, device: torch.device) -> None:
        """Move the catalogue's tensors to the model's device."""
        if self.neighbours is not None:
            self.neighbours = self.neighbours.to(device)
        if self.children is not None:
            self.children = self.children.to(device)
        for name in ("trained_J", "compact_I", "log_share_I"):
            setattr(self, name, getattr(self, name).to(device))

    def __call__(self, batch: TrainingBatch) -> Losses:
        """Losses of one batch; draws masks, dropout and negatives from torch's generator."""
        model, config, events = self.model, self.model.config, batch.events
        full = config.retrieval_loss == "full"
        table_I1D = model.items.table() if full else None
        rows_of_step = model.items.rows if full else model.items.rows_of_step()

        def lookup(items: Tensor) -> Tensor:
            if table_I1D is None:
                return rows_of_step(items)
            return F.embedding(items % len(table_I1D), table_I1D)

        hides = config.use_actions and model.layout.hides_actions
        hidden_T = torch.zeros_like(events.time_known_T)
        if hides:
            hidden_T = torch.rand(len(events.item_T), device=hidden_T.device) < config.mask_prob
        z_RD, cache = model.encode_packed(events, hidden_T, lookup)

        reads_T = model.layout.item_events(hidden_T)
        query_ND, target_N = self._queries(batch, z_RD, reads_T)
        num_targets = len(target_N)
        item = z_RD.sum() * 0.0
        if num_targets:
            item = self._item_loss(query_ND, target_N, table_I1D, lookup) / num_targets
        action = z_RD.new_zeros(())
        if model.action_head is not None:
            action = self._history_action_loss(batch, z_RD, hidden_T, lookup)
            if batch.candidates is not None:
                action = action + self._candidate_loss(batch, batch.candidates, cache, lookup, hidden_T)
        total = item + config.action_weight * action
        code = None
        if num_targets and model.codes.sizes and self.trains_codes:
            code, other = self._code_losses(batch, cache, reads_T, query_ND, target_N)
            total = total + config.code_weight * other
            if code is not None:
                total = total + config.code_weight * code
        return Losses(total, item.detach(), action.detach(), num_targets, None if code is None else code.detach())

    # -- generation -----------------------------------------------------------------------------------------------

    def code_loss(self, batch: TrainingBatch) -> tuple[Tensor | None, Tensor | None]:
        """L_code of one batch alone, in a model whose heads train on an encoder that is finished.

        Returns:
            the sum over heads, and the part of the decoder; None where there is nothing to learn, or no decoder.
        """
        model, events = self.model, batch.events
        with torch.no_grad():
            hidden_T = torch.zeros_like(events.time_known_T)
            z_RD, cache = model.encode_packed(events, hidden_T, model.items.rows)
            reads_T = model.layout.item_events(hidden_T)
            query_ND, target_N = self._queries(batch, z_RD, reads_T)
        if not len(target_N):
            return None, None
        code, other = self._code_losses(batch, cache, reads_T, query_ND, target_N)
        return other if code is None else other + code, None if code is None else code.detach()

    def _code_losses(
        self, batch: TrainingBatch, cache: KeysValues, reads_T: Tensor, query_ND: Tensor, target_N: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Loss of the decoder, where there is one, and the sum of those of the heads that predict codes all at once."""
        model, events, scale = self.model, batch.events, self.model.layout.rows_per_event
        if model.config.detach_codes:
            query_ND, cache = query_ND.detach(), [(k.detach(), v.detach()) for k, v in cache]
        at_N = (reads_T & (batch.target_T >= 0)).nonzero().flatten()
        visible_N = torch.cat([(events.position_T[at_N] + 1) * scale, torch.zeros_like(batch.start_S)])
        sequence_N = torch.cat([_sequences(events)[at_N], batch.start_S])
        groups = [type(g)(g.start * scale, g.num_sequences, g.length * scale) for g in events.groups]
        read = PackedReader(cache, groups, events.num_sequences, sequence_N, visible_N)

        if self.distillation is not None:
            return self._distilled(self.distillation, query_ND, target_N, read)

        def codes(kind: str) -> Tensor:
            return model.codes.of(kind)[target_N].long()

        code, other = None, query_ND.new_zeros(())
        if model.code_decoder is not None:
            code = self._code_loss(model.code_decoder(query_ND, codes("codes"), read), codes("codes"), target_N)
        if model.parallel_codes is not None:
            other = other + model.parallel_codes.loss(query_ND, codes("parallel_codes"))
        if model.set_codes is not None:
            other = other + model.set_codes.loss(query_ND, codes("set_codes"), read)
        return code, other

    def _distilled(
        self, teacher: CodeDistillation, query_ND: Tensor, target_N: Tensor, read: PackedReader
    ) -> tuple[Tensor | None, Tensor]:
        """The same from the labels of dense retrieval."""
        model, other = self.model, query_ND.new_zeros(())
        code = None
        if model.code_decoder is not None:
            code = self._distilled_codes(teacher, model.code_decoder, query_ND, target_N, read)
        if model.parallel_codes is None and model.set_codes is None:
            return code, other
        item_M, log_chance_M = teacher.candidates(target_N)
        factors = torch.bfloat16 if model.config.softmax_factors == "bfloat16" else torch.float32
        for kind, head in (("parallel_codes", model.parallel_codes), ("set_codes", model.set_codes)):
            if head is None:
                continue
            query_JND = head.queries(query_ND) if isinstance(head, ParallelCodes) else head.read_queries(query_ND, read)
            logit_NM = head.item_logits(query_JND, model.codes.of(kind)[item_M].long(), factors)
            other = other + teacher.items_loss(logit_NM, query_ND, target_N, item_M, log_chance_M)
        return code, other

    def _distilled_codes(
        self, teacher: CodeDistillation, decoder: CodeDecoder, query_ND: Tensor, target_N: Tensor, read: PackedReader
    ) -> Tensor:
        if teacher.children is None:
            code_NL = self.model.codes.of("codes")[target_N].long()
            return self._code_loss(decoder(query_ND, code_NL, read), code_NL, target_N)
        item_N, is_own_N, below_NX = teacher.followed(query_ND, target_N)
        code_NL = self.model.codes.of("codes")[item_N].long()
        logits = [logit_NK.float() for logit_NK in decoder(query_ND, code_NL, read)]
        return teacher.codes_loss(logits, item_N, code_NL, is_own_N, below_NX, self.model.config.code_children)

    def _code_loss(self, logits: list[Tensor], code_NL: Tensor, target_N: Tensor) -> Tensor:
        if self.children is not None:
            prefix_NL = self.children.prefix_IL[target_N]
            logits = [self.children.masked(level, logit, prefix_NL[:, level]) for level, logit in enumerate(logits)]
        losses = [F.cross_entropy(logit_NK.float(), code_NL[:, level]) for level, logit_NK in enumerate(logits)]
        return torch.stack(losses).sum()

    # -- retrieval ------------------------------------------------------------------------------------------------

    def _queries(self, batch: TrainingBatch, z_RD: Tensor, reads_T: Tensor) -> tuple[Tensor, Tensor]:
        model, events = self.model, batch.events
        at_N = (reads_T & (batch.target_T >= 0)).nonzero().flatten()
        both_N = batch.request_known_T[at_N] & events.time_known_T[at_N]
        gap_N = torch.where(both_N, (batch.request_time_T[at_N] - events.time_T[at_N]).clamp_min(0), UNKNOWN_GAP)
        z_ND = model.layout.item_reads(z_RD)[at_N]
        start_FD = model.start_D.expand(len(batch.start_S), -1)
        sequence_N = torch.cat([_sequences(events)[at_N], batch.start_S])
        query_ND = model.query_packed(
            torch.cat([z_ND, start_FD]),
            self._partly_hidden(torch.cat([batch.request_surface_T[at_N], batch.start_surface_F])),
            torch.cat([batch.request_time_T[at_N], batch.start_time_F]),
            torch.cat([batch.request_known_T[at_N], batch.start_known_F]),
            torch.cat([gap_N, torch.full_like(batch.start_time_F, UNKNOWN_GAP)]),
            self._user_vectors(batch, sequence_N),
        )
        return query_ND, torch.cat([batch.target_T[at_N], batch.start_target_F])

    def _partly_hidden(self, surface: Tensor) -> Tensor:
        """Surfaces of requests, some of them unknown: a caller need not name one."""
        config = self.model.config
        if not (config.use_surfaces and config.surface_dropout and self.model.training):
            return surface
        return torch.where(torch.rand(surface.shape, device=surface.device) < config.surface_dropout, 0, surface)

    def _user_vectors(self, batch: TrainingBatch, sequence_N: Tensor) -> Tensor:
        """[N, D] of the users of rows, some of them unknown: a caller need not say anything of a user."""
        model, config = self.model, self.model.config
        if model.users is None or batch.user_SK is None:
            return model.user_vectors(len(sequence_N), None)
        vector_ND = model.users(batch.user_SK)[sequence_N]
        if not (config.user_dropout and model.training):
            return vector_ND
        shown_N = torch.rand(len(sequence_N), device=vector_ND.device) >= config.user_dropout
        return vector_ND * shown_N[:, None]

    def _item_loss(
        self, query_ND: Tensor, target_N: Tensor, table_I1D: Tensor | None, lookup: Callable[[Tensor], Tensor]
    ) -> Tensor:
        config, item_side = self.model.config, self.model.query_head.item_side
        if table_I1D is not None:
            vectors_JD = table_I1D[:-1] if self.all_trained else table_I1D.index_select(0, self.trained_J)
            label_NK, weight_NK = (target_N, None) if self.neighbours is None else self.neighbours.labels(target_N)
            label_JK = self.compact_I[label_NK]
            return full_softmax_loss_sum(
                query_ND, item_side(vectors_JD), label_JK, weight_NK, config.label_smoothing,
                torch.bfloat16 if config.softmax_factors == "bfloat16" else None,
            )  # fmt: skip
        if self.neighbours is not None:
            target_N = self.neighbours.drawn(target_N)
        num_random, num_trained = config.num_negatives, len(self.trained_J)
        num_shared = min(config.num_negatives, len(target_N))
        random_M = self.trained_J[torch.randint(num_trained, (num_random,), device=target_N.device)]
        shared_M = target_N[torch.randperm(len(target_N), device=target_N.device)[:num_shared]]
        negative_M = torch.cat([shared_M, random_M])

        def log_expected(rows: Tensor) -> Tensor:
            return torch.log(num_random / num_trained + num_shared * self.log_share_I[rows].exp())

        return sampled_softmax_loss_sum(
            query_ND, item_side(lookup(target_N)), target_N, item_side(lookup(negative_M)), negative_M,
            log_expected(target_N), log_expected(negative_M), config.label_smoothing,
        )  # fmt: skip

    # -- ranking --------------------------------------------------------------------------------------------------

    def _ranked(self, vector_ND: Tensor) -> Tensor:
        return vector_ND.detach() if self.model.config.detach_candidates else vector_ND

    def _history_action_loss(self, batch: TrainingBatch, z_RD: Tensor, hidden_T: Tensor, lookup) -> Tensor:  # type: ignore[no-untyped-def]
        model, events = self.model, batch.events
        assert model.action_head is not None
        at_N = (model.layout.action_events(hidden_T) & (events.known_T != 0)).nonzero().flatten()
        if not len(at_N):
            return z_RD.sum() * 0.0
        logits_NA = model.action_head(
            model.layout.action_reads(z_RD)[at_N],
            self._ranked(lookup(events.item_T[at_N])),
            feature_RF=None if batch.feature_TF is None else batch.feature_TF[at_N].float(),
            user_RD=self._user_vectors(batch, _sequences(events)[at_N]),
        )
        return self._labels_loss(logits_NA, events.yes_T[at_N], events.known_T[at_N], batch.value_T[at_N])

    def _candidate_loss(self, batch: TrainingBatch, rows: CandidateRows, cache, lookup, hidden_T: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        model, events = self.model, batch.events
        assert model.action_head is not None and rows.yes_N is not None and rows.known_N is not None
        scale = model.layout.rows_per_event
        length_Q = events.lengths_S[rows.sequence_Q]
        offset_Q = events.offsets_S1[:-1][rows.sequence_Q]
        columns = max((g.length for g in events.groups), default=0) * scale

        def pad(packed: Tensor) -> Tensor:
            return pad_packed(packed, offset_Q * scale, length_Q * scale, columns)

        visible_QC = rows.pad(rows.visible_N)
        place_N = rows.place_N
        assert place_N is not None
        sequence_N = torch.div(place_N, rows.columns, rounding_mode="floor")
        none_N = rows.visible_N == 0
        last_N = (offset_Q[sequence_N] + rows.visible_N - 1).clamp_min(0)
        known_N = ~none_N & events.time_known_T[last_N]
        gap_N = torch.where(known_N, (rows.time_N - events.time_T[last_N]).clamp_min(0), UNKNOWN_GAP)
        vector_ND = self._ranked(lookup(rows.item_N))
        last = ActionInput(events.yes_T[last_N], events.known_T[last_N], none_N)
        surface_N = self._partly_hidden(rows.surface_N)
        age_N = torch.where(none_N, 0, model.positive_ages(events, hidden_T)[1][last_N])
        x_ND = model.candidate_tokens(vector_ND, last, surface_N, rows.time_N, gap_N, rows.visible_N, age_N)
        time_QC = rows.pad(rows.time_N)
        z_ND, _ = model.encoder.delta(
            x_ND, rows, [(pad(k), pad(v)) for k, v in cache], visible_QC * scale, own="self",
            time_BN=time_QC, time_known_BN=torch.ones_like(time_QC, dtype=torch.bool),
            time_BL=pad(events.time_T.repeat_interleave(scale)),
            time_known_BL=pad(events.time_known_T.repeat_interleave(scale)),
        )  # fmt: skip
        feature_NF = rows.feature_NF
        if feature_NF is not None:
            feature_NF = features_without_surface(model.config, feature_NF, surface_N == 0)
        user_ND = self._user_vectors(batch, rows.sequence_Q[sequence_N])
        logits_NA = model.action_head(z_ND, vector_ND, rows.shown_N, feature_NF, user_ND)
        assert rows.value_N is not None and rows.slate_N is not None
        loss = self._labels_loss(logits_NA, rows.yes_N, rows.known_N, rows.value_N)
        if model.config.pairwise_weight:
            num_actions = model.config.num_actions
            yes_NA, known_NA = action_bits(rows.yes_N, num_actions), action_bits(rows.known_N, num_actions)
            pairs = pairwise_loss(logits_NA[:, :num_actions], yes_NA, known_NA, rows.slate_N)
            loss = loss + model.config.pairwise_weight * pairs
        return loss

    def _labels_loss(self, logits_NA: Tensor, yes_N: Tensor, known_N: Tensor, value_N: Tensor) -> Tensor:
        num_actions = self.model.config.num_actions
        loss = action_loss(
            logits_NA[:, :num_actions], action_bits(yes_N, num_actions), action_bits(known_N, num_actions)
        )
        if self.model.config.regress_value:
            has_value = ~value_N.isnan()
            wanted = torch.log1p(value_N.nan_to_num(0.0).clamp_min(0.0))
            error = F.smooth_l1_loss(logits_NA[:, -1], wanted, reduction="none") * has_value
            loss = loss + error.sum() / has_value.sum().clamp_min(1)
        return loss


def _sequences(events: EventBatch) -> Tensor:
    """[T] sequence of every packed event."""
    return torch.repeat_interleave(torch.arange(events.num_sequences, device=events.item_T.device), events.lengths_S)
