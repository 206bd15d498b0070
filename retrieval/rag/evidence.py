"""What is known of why one user gets one item, in numbered sentences.

Everything stands in the user's own history, in the item table, or in counts over all people that name none of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from recsys.index.item_graph import TRANSITION
from recsys.index.walks import WALKS
from recsys.retrieval.explain import EventEffect, Explanation
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.passages_of import item_passages
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.as_data import as_data

__all__ = ["evidence_for", "title_of"]

_TITLE_CHARS = 100
_TEXT_PASSAGES = 2
_NEIGHBOURS = 3
_ENDS = re.compile(r"[.!?…]+(?=\W|$)|[。！？“”]")
_LEAST_SHARE = 0.005
"""Of the score's size: events that change less are not worth a sentence."""


def evidence_for(
    recommender: Recommender, explanation: Explanation, *, store: PassageStore | None = None, most_events: int = 3
) -> list[Passage]:
    """Sentences of evidence, strongest first; there is always one.

    Args:
        explanation: of the item, as :meth:`Recommender.explain` gives it.
        store: where texts of the item come from; None = the item table.
        most_events: most events of the user.
    """
    bundle, item_id = recommender.bundle, explanation.item_id
    speaking = [effect for effect in explanation.effects if effect.item_id is not None and _speaks(effect, explanation)]
    neighbours = _next_items(recommender, item_id)
    titles = _titles(bundle.items, [*(effect.item_id for effect in speaking), *neighbours])
    has_clock = bundle.vocabulary.clock == "real"
    found = [_of_event(effect, explanation, titles[effect.item_id], has_clock) for effect in speaking[:most_events]]
    if not speaking:
        text = "No single event of your history raises the score of this item."
        if not explanation.num_events:
            text = "Your history is empty, so this item has the score that it has for new users."
        found.append(Passage.of(text, "history", item_id))
    likely = _likely_actions(recommender, explanation)
    if likely:
        said = " and ".join(f"“{action}” {chance:.0%}" for action, chance in likely)
        found.append(Passage.of(f"Your actions on this item have the estimated probabilities {said}.", "probability"))
    texts = (
        store.of_items([item_id])
        if store is not None
        else item_passages(bundle.items.filter(pl.col("item_id") == item_id))
    )
    found += texts[:_TEXT_PASSAGES]
    if neighbours:
        listed = ", ".join(f"“{titles[other]}”" for other in neighbours)
        found.append(Passage.of(f"People who took this item went on to {listed}.", "item graph", item_id))
    return found


def title_of(recommender: Recommender, item_id: Any) -> str:
    """What an item is called in sentences: its title, or its id where it has none."""
    return _titles(recommender.bundle.items, [item_id])[item_id]


def _speaks(effect: EventEffect, explanation: Explanation) -> bool:
    return effect.score_change > _LEAST_SHARE * max(abs(explanation.score), 1e-6)


def _of_event(effect: EventEffect, explanation: Explanation, title: str, has_clock: bool) -> Passage:
    did = " and ".join(action.replace("_", " ") for action in effect.actions) or "seen"
    when = ""
    if has_clock and effect.timestamp is not None:
        day = np.datetime64(effect.timestamp, "s").astype("datetime64[D]")
        when = f" on {day}"
    text = f"Your history has “{title}” ({did}{when}), without which the score of this item would be "
    text += f"{effect.score_change:.2f} lower, of {explanation.score:.2f}"
    relations = [reason.relation for reason in effect.memory if reason.value > 0]
    if TRANSITION in relations:
        text += "; people who took it went on to this item"
    if any(relation not in (TRANSITION, *WALKS) for relation in relations):
        text += "; the descriptions of both are alike"
    return Passage.of(f"{text}.", "event", effect.item_id)


def _likely_actions(recommender: Recommender, explanation: Explanation) -> list[tuple[str, float]]:
    """The two likeliest actions that are positive."""
    bundle = recommender.bundle
    mask = bundle.model.config.positive_mask
    liked = [name for bit, name in enumerate(bundle.vocabulary.actions) if mask >> bit & 1]
    chances = [(name.replace("_", " "), explanation.actions[name]) for name in liked if name in explanation.actions]
    return sorted(chances, key=lambda pair: -pair[1])[:2]


def _next_items(recommender: Recommender, item_id: Any) -> list[Any]:
    """Where most people went from an item, by the item graph."""
    bundle = recommender.bundle
    graph = bundle.graph_now
    if TRANSITION not in graph.relations:
        return []
    number = int(bundle.vocabulary.items.index([item_id])[0])
    if number < 0:  # the catalogue changed since it was explained
        return []
    row_1 = torch.tensor(
        [number * len(graph.relations) + graph.relations.index(TRANSITION)], device=graph.indptr.device
    )
    _, neighbour_T, _ = graph.edges(row_1)
    gone = set(bundle.withdrawn_G.tolist())
    kept = [other for other in neighbour_T.tolist() if other not in gone][:_NEIGHBOURS]
    return bundle.vocabulary.items.take(kept)


def _titles(items: pl.DataFrame, item_ids: Sequence[Any]) -> dict[Any, str]:
    wanted = items.filter(pl.col("item_id").is_in(list(dict.fromkeys(item_ids))))
    titles = wanted["title"].cast(pl.String).to_list() if "title" in items.columns else [None] * wanted.height
    known = {item_id: _in_a_sentence(title or "") for item_id, title in zip(wanted["item_id"], titles, strict=True)}
    return {item_id: known.get(item_id) or _in_a_sentence(f"item {item_id}") for item_id in item_ids}


def _in_a_sentence(title: str) -> str:
    """Without quotation marks and what would end the sentence that it stands in."""
    return " ".join(_ENDS.sub(" ", as_data(title, _TITLE_CHARS)).split())
