"""Everything that decides the shape and the losses of the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from recsys.errors import InputError, shown
from recsys.events import MOST_ACTIONS

__all__ = ["ModelConfig", "RetrievalLoss"]

BlockKind = Literal["softmax", "hstu", "ligr"]
LayoutKind = Literal["mam", "interleaved", "lagged"]
RetrievalLoss = Literal["full", "sampled"]
ScoreKind = Literal["dot", "cosine"]
SoftmaxFactors = Literal["float32", "bfloat16"]
TimeEncoding = Literal["bias", "rotary", "both", "none"]


_MOST = {
    "num_items": 2**31 - 1, "num_surfaces": 2**16, "content_dim": 2**20, "user_dim": 2**20, "dim": 2**16,
    "num_blocks": 256, "num_heads": 2**12, "ffn_factor": 256, "window": 2**20, "recent": 2**12, "kept": 2**12,
    "code_blocks": 64, "set_blocks": 64, "cross_layers": 64, "cross_rank": 2**16,
    "max_shown_rank": 2**20, "code_sizes": 2**20, "parallel_sizes": 2**20, "set_sizes": 2**20,
}  # fmt: skip
"""Largest values, so that a foreign file cannot ask for a model that no machine holds."""
_MOST_LEVELS = 1024
_REMOVED = {"reasoning_steps": 0, "target_aware": 0.0, "target_aware_negatives": 8}
"""Settings of earlier versions with the value that left them without effect; with another one a model is refused."""
_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "float": (float, int)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One unified model. What depends on the data set has no default."""

    num_items: int
    num_actions: int
    """Size of the action vocabulary; at most 31, since actions are bits of one integer."""
    num_surfaces: int
    """Size of the surface vocabulary, index 0 (unknown) included."""
    positive_mask: int
    """Bits of the actions that make an event positive."""
    content_dim: int = 0
    """Width of the content features of an item; 0 = ids only."""
    user_dim: int = 0
    """Width of the features of a user; 0 = a user is their events alone."""
    dim: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    ffn_factor: int = 4
    """Width of the feed-forward layer of a softmax or LiGR block, in multiples of ``dim``."""
    block: BlockKind = "softmax"
    layout: LayoutKind = "mam"
    window: int = 64
    """Most events a user state holds (W); the window moves by W / 4 events at a time."""
    recent: int = 4
    """Last positive items that the memory terms read (m)."""
    kept: int = 64
    """Last positive items that a user state keeps: those of the memory terms, and what lists are compared with."""
    use_actions: bool = True
    """Whether actions enter the tokens and the action head is trained."""
    positives_only: bool = False
    """Whether the encoder sees positive events only, as classical sequence models do."""
    use_surfaces: bool = True
    use_time: bool = True
    """Whether there is a clock: time bias, gap and calendar features."""
    time_encoding: TimeEncoding = "bias"
    """How attention sees times where there is a clock: a bias of t_i − t_j, rotary angles, both or neither."""
    position_bias: bool = False
    """Whether attention has a learned bias of the distance in rows."""
    positive_recency: bool = False
    """Whether a token says how many events ago the last positive event before it was."""
    mask_prob: float = 0.2
    """Share of history actions hidden in training (masked action modelling; UniPinRec, arXiv 2606.00422)."""
    dropout: float = 0.3
    id_dropout: float = 0.1
    """Share of items whose id embedding is dropped in a training step, so that content carries weight too."""
    surface_dropout: float = 0.1
    """Share of training requests whose surface is hidden, so that a request may leave it out."""
    user_dropout: float = 0.1
    """Share of training requests whose user's features are hidden, so that a request may leave them out."""
    crop: float = 0.0
    """Share of training windows cut in two at a random place, so that short histories are seen more often."""
    score: ScoreKind = "dot"
    """Retrieval scores: inner products, or cosines times a learned inverse temperature."""
    retrieval_loss: RetrievalLoss = "full"
    softmax_factors: SoftmaxFactors = "float32"
    """Type of the factors and results of the matrix products in the full softmax's loss; the rest of it is float32.
    Under an autocast of the whole training the products have its type."""
    num_negatives: int = 256
    """Uniform negatives a step of the sampled softmax; up to as many targets of the batch join them."""
    neighbour_targets: float = 0.0
    """Share of a retrieval target's label that goes to the items nearest to it in content."""
    label_smoothing: float = 0.0
    """Share of a retrieval target's probability that is spread over all items of the softmax (arXiv 1512.00567)."""
    action_weight: float = 0.3
    """Weight of L_action beside L_item. With .3 instead of 1 validation NDCG@10 of the learned part rose from .0561 to
    .0592 on KuaiRand, where the AUC of clicks fell less over twelve epochs (.7531, not .7491), and test NDCG@10 on the
    simulated world from .127 to .130 with the same AUC."""
    pairwise_weight: float = 0.0
    """Weight of the pairwise logistic term inside a slate."""
    regress_value: bool = False
    """Whether a head predicts log(1 + value)."""
    detach_candidates: bool = False
    """Whether the action losses leave the vector of a ranked item as it is, so that labels are not memorised in it."""
    past_rates: bool = False
    """Whether the ranking head reads how often each action followed before; see :mod:`recsys.past_rates`."""
    memory_features: bool = False
    """Whether the ranking head reads the memory terms of a candidate; see :mod:`recsys.memory_features`."""
    relations: tuple[str, ...] = ()
    """Relations of the item graph that these terms are read from."""
    code_sizes: tuple[int, ...] = ()
    """Codes of each level of the semantic IDs that a decoder generates; empty = the model has none."""
    parallel_sizes: tuple[int, ...] = ()
    """Codes of each codebook of the long semantic IDs that are predicted all at once; empty = none."""
    set_sizes: tuple[int, ...] = ()
    """Codes of each codebook of the set identifiers that are predicted by a query each; empty = none."""
    code_pairs: int = 0
    """Pairs of a first and a second code that have a vector of their own in that decoder; 0 = none has."""
    code_score: ScoreKind = "cosine"
    """What the heads that predict codes all at once score a code by: a cosine, or the inner product with a vector that
    starts as what the code stands for among the item vectors."""
    code_blocks: int = 1
    """Blocks of that decoder."""
    code_children: bool = True
    """Whether that decoder's softmax runs over the codes that continue a prefix in the catalogue, and not over all."""
    set_blocks: int = 1
    """Blocks of the head of set identifiers."""
    detach_codes: bool = True
    """Whether the code losses leave the encoder and the query as they are, so that dense retrieval loses nothing: the
    heads are then trained on the encoder of the best epoch. Else L = L_item + L_action + L_code from the start."""
    code_dropout: float = 0.1
    """Inside the heads of semantic IDs."""
    code_weight: float = 1.0
    """Weight of L_code beside L_item: −log p of all codes of the decoder, and the mean over those predicted at once."""
    cross_layers: int = 0
    """Low-rank cross layers of the ranking head (DCN V2, arXiv 2008.13535)."""
    cross_rank: int = 32
    max_shown_rank: int = 32
    """Places of a slate with a position bias of their own; later ones share the last."""

    def __post_init__(self) -> None:
        for name in (
            "num_surfaces",
            "dim",
            "num_blocks",
            "num_heads",
            "window",
            "recent",
            "kept",
            "ffn_factor",
            "max_shown_rank",
            "cross_rank",
            "code_blocks",
            "set_blocks",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"model.{name} must be positive, got {getattr(self, name)!r}")
        for name, most in _MOST.items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                if type(value) is not int or value > most:
                    raise InputError(f"model.{name} must be an integer of at most {most}, got {shown(value)}")
        for name in ("code_sizes", "parallel_sizes", "set_sizes", "relations"):
            if len(getattr(self, name)) > _MOST_LEVELS:
                raise InputError(f"model.{name} names {len(getattr(self, name))} parts, more than {_MOST_LEVELS}")
        if self.dim % self.num_heads:
            raise InputError(f"model.dim = {self.dim} must be a multiple of model.num_heads = {self.num_heads}")
        if self.kept < self.recent:
            raise InputError(f"model.kept = {self.kept} must be at least model.recent = {self.recent}")
        if self.window % 4:
            raise InputError(f"model.window = {self.window} must be a multiple of 4, since it moves by a quarter")
        if self.positives_only and self.use_actions:
            raise InputError("model.positives_only leaves nothing to rank; set model.use_actions to false with it")
        if not 0 <= self.positive_mask < 2**MOST_ACTIONS:
            raise InputError(f"model.positive_mask = {shown(self.positive_mask)} is no mask of {MOST_ACTIONS} actions")
        if not 0 <= self.num_actions <= MOST_ACTIONS:
            raise InputError(f"model.num_actions = {self.num_actions}; at most {MOST_ACTIONS} actions fit")
        for name in (
            "mask_prob",
            "dropout",
            "id_dropout",
            "surface_dropout",
            "user_dropout",
            "label_smoothing",
            "neighbour_targets",
        ):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"model.{name} must be in [0, 1), got {getattr(self, name)!r}")
        if self.code_pairs < 0:
            raise InputError(f"model.code_pairs must not be negative, got {self.code_pairs!r}")
        if self.cross_layers < 0:
            raise InputError(f"model.cross_layers must not be negative, got {self.cross_layers!r}")
        for name in ("past_rates", "memory_features"):
            if getattr(self, name) and not self.use_actions:
                raise InputError(f"model.{name} needs actions to rank by; leave it out with model.use_actions = false")
        if not 0.0 <= self.crop <= 1.0:
            raise InputError(f"model.crop must be in [0, 1], got {self.crop!r}")
        if self.time_encoding in ("rotary", "both") and self.head_dim % 2:
            raise InputError(
                f"model.time_encoding = {self.time_encoding} turns pairs; model.dim / model.num_heads must be even"
            )
        for name, allowed in (
            ("block", ("softmax", "hstu", "ligr")),
            ("time_encoding", ("bias", "rotary", "both", "none")),
            ("score", ("dot", "cosine")),
            ("code_score", ("dot", "cosine")),
            ("layout", ("mam", "interleaved", "lagged")),
            ("retrieval_loss", ("full", "sampled")),
            ("softmax_factors", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"model.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def has_time_bias(self) -> bool:
        return self.use_time and self.time_encoding in ("bias", "both")

    @property
    def has_rotary_time(self) -> bool:
        return self.use_time and self.time_encoding in ("rotary", "both")

    @property
    def stride(self) -> int:
        """Events by which the window moves (S = W / 4)."""
        return self.window // 4

    def first_visible(self, num_events: int) -> int:
        """Place of the first event that a history of ``num_events`` events shows: S·⌈max(0, n − W)/S⌉.

        >>> ModelConfig(num_items=1, num_actions=1, num_surfaces=1, positive_mask=1, window=8).first_visible(9)
        2
        """
        return self.stride * -(-max(0, num_events - self.window) // self.stride)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Raises InputError on a key this version does not know, and on a value of another type."""
        values = {name: value for name, value in values.items() if _REMOVED.get(name) != value}
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(
                f"model configuration holds the unknown setting {unknown[0]!r}; it was written by another version"
            )
        for field in fields(cls):
            wanted = _PLAIN.get(str(field.type))
            if wanted is not None and field.name in values and type(values[field.name]) not in wanted:
                raise InputError(f"model.{field.name} must be {field.type}, got {shown(values[field.name])}")
        lists = {
            name: tuple(values.get(name, ())) for name in ("relations", "code_sizes", "parallel_sizes", "set_sizes")
        }
        # A decoder whose configuration says nothing of it was trained among all codes.
        return cls(**{"code_children": not lists["code_sizes"], **values, **lists})
