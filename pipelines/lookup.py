"""The commands ``recommend`` and ``similar``: a look at one user, a look at one item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from recsys.files import write_json
from recsys.pipelines.console import stdout_console
from recsys.pipelines.rule_file import read_rules
from recsys.retrieval.explain import EventEffect
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.recommender import Recommender

__all__ = ["recommend", "similar"]

_MOST_REASONS = 2


def recommend(
    bundle: Path,
    user: str,
    k: int = 10,
    retrievers: str = "dense",
    at: int | None = None,
    surface: str | None = None,
    rank_by: str | None = None,
    rules: Path | None = None,
    why: bool = False,
    json: Path | None = None,
) -> None:
    """Show what one user would be recommended.

    Args:
        bundle: what `recsys export --histories` wrote.
        user: a user id; one that the bundle does not know is answered as a new user.
        k: items to show.
        retrievers: who finds the items, A,B: dense, dense_learned, memory, generative, parallel,
            set, hybrid.
        at: time of the request, as the data's timestamps count; default the wall clock, or the last event's time.
        surface: where the items would be shown.
        rank_by: order by the probability of this action instead of by retrieval.
        rules: JSON list of business rules, such as [{"rule": "cap", "column": "brand", "n": 2}].
        why: name the two events that each item owes most to: without them its score would be lower by
            so much. Costs one encoding per event and item.
        json: write the answer to this file too.
    """
    rec = Recommender.load(bundle)
    names = tuple(name.strip() for name in retrievers.split(","))
    given = () if rules is None else read_rules(rules)
    page = rec.recommend(user, k=k, retrievers=names, at=at, surface=surface, rank_by=rank_by, rules=given)
    reasons = [_reasons(rec, user, hit, at, surface) for hit in page] if why else None
    _show(rec, page, f"for user {user}", reasons)
    if json is not None:
        answer = _as_json(rec, page)
        for hit, effects in zip(answer["hits"], reasons or (), strict=False):
            hit["why"] = [{"item_id": effect.item_id, "score_change": effect.score_change} for effect in effects]
        write_json(json, {"user_id": user, **answer})


def similar(bundle: Path, item: str, k: int = 10, json: Path | None = None) -> None:
    """Show the items most similar to one item.

    Args:
        bundle: what `recsys export` wrote.
        item: an item id.
        k: items to show.
        json: write the answer to this file too.
    """
    rec = Recommender.load(bundle)
    page = rec.similar_items(item, k)
    _show(rec, page, f"similar to item {item}{_quoted(_titles(rec, [item])[0])}")
    if json is not None:
        write_json(json, {"item_id": item, **_as_json(rec, page)})


def _reasons(rec: Recommender, user: str, hit: Hit, at: int | None, surface: str | None) -> list[EventEffect]:
    """The events that speak most for an item; none for one that a rule put there."""
    if hit.retriever == "pin":
        return []
    found = rec.explain(user, hit.item_id, retriever=hit.retriever, at=at, surface=surface)
    return [effect for effect in found.effects if effect.score_change > 0][:_MOST_REASONS]


def _titles(rec: Recommender, item_ids: list[Any]) -> list[str | None]:
    if "title" not in rec.items.columns:
        return [None] * len(item_ids)
    titles: list[str | None] = rec.items["title"].gather(rec.bundle.vocabulary.items.index(item_ids)).to_list()
    return titles


def _quoted(title: str | None) -> str:
    return f" “{title}”" if title else ""


def _show(rec: Recommender, page: Page, about: str, reasons: list[list[EventEffect]] | None = None) -> None:
    titles = _titles(rec, page.item_ids)
    actions = list(page[0].actions) if len(page) else []
    table = Table(title=about, title_justify="left")
    for name in ("", "item", *(["title"] if any(titles) else []), "score", *actions, "retriever"):
        table.add_column(name, justify="left" if name in ("item", "title", "retriever") else "right", overflow="fold")
    for place, (hit, title) in enumerate(zip(page, titles, strict=True), start=1):
        cells = [str(place), str(hit.item_id), *([title or ""] if any(titles) else [])]
        cells += [f"{hit.score:.3f}", *(f"{hit.actions[name]:.3f}" for name in actions), hit.retriever]
        table.add_row(*cells)
    console = stdout_console()
    console.print(table)
    for place, effects in enumerate(reasons or (), start=1):
        because = "; ".join(_reason(rec, effect) for effect in effects)
        console.print(f"{place}: because of {because or 'no event'}", markup=False, highlight=False)
    for note in page.notes:
        console.print(f"note: {note}", markup=False)


def _reason(rec: Recommender, effect: EventEffect) -> str:
    known = effect.item_id is not None
    title = _titles(rec, [effect.item_id])[0] if known else None
    return f"{title or (effect.item_id if known else 'an unknown item')} (+{effect.score_change:.2f})"


def _as_json(rec: Recommender, page: Page) -> dict[str, Any]:
    explored = any(hit.propensity < 1 for hit in page)
    hits = [
        {
            "item_id": hit.item_id,
            **({"title": title} if title is not None else {}),
            "score": hit.score,
            "retriever": hit.retriever,
            "actions": hit.actions,
            **({"propensity": hit.propensity} if explored else {}),
        }
        for hit, title in zip(page, _titles(rec, page.item_ids), strict=True)
    ]
    return {"hits": hits, "num_reachable": page.num_reachable, "notes": list(page.notes)}
