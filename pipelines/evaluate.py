"""The command ``evaluate``: figures of a bundle, or of anyone's lists, under the one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import check_file_output, write_json
from recsys.pipelines.baselines import RANKING
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.evaluation_baselines import BaselineRuns, baseline_names
from recsys.pipelines.evaluation_lists import ranked_lists
from recsys.pipelines.evaluation_newcomers import Question, newcomer_segments, questions, rank_questions
from recsys.pipelines.evaluation_ranking import (
    ActionFigures,
    SlateRows,
    action_minus,
    bundle_probabilities,
    slate_rows,
    value_row,
)
from recsys.pipelines.evaluation_rerank import rerank_rows
from recsys.pipelines.evaluation_retrieval import ndcg_minus, retrieval_row, segment_rows
from recsys.pipelines.evaluation_tables import show
from recsys.pipelines.language_model import ModelDtype, ModelOptions
from recsys.pipelines.rerank_options import RerankOptions, refuse_rerank_flags
from recsys.pipelines.targets import BatchStates, RankedTargets, RetrieverScorer, rank_all, targets_of
from recsys.ranking import predict_slates
from recsys.retrieval.bundle_retrievers import bundle_retrievers

__all__ = ["evaluate", "evaluate_bundle", "evaluate_lists"]

SPLITS = {"validation": 1, "test": 2}
HISTORY_FILTER = "items of all earlier events, whatever their action; a target among them is a miss"
TIE_RULE = "ties count against the target"


def evaluate(
    data: Path,
    bundle: Path | None = None,
    lists: Path | None = None,
    split: str = "test",
    retrievers: str | None = None,
    baselines: str | None = None,
    all_positives: bool = False,
    rerank: str | None = None,
    lm: str | None = None,
    lm_dtype: ModelDtype | None = None,
    lm_prices: str | None = None,
    lm_timeout_s: float | None = None,
    lm_retries: int | None = None,
    lm_prefill: bool = True,
    cross_encoder: Path | None = None,
    feedback: Path | None = None,
    prompt: str | None = None,
    rerank_top: int = 20,
    rerank_weight: float | None = None,
    rerank_users: int = 200,
    json: Path | None = None,
    seed: int = 0,
) -> None:
    """Measure a bundle, or anyone's lists, on held-out targets and slates.

    Every target is ranked against the whole catalogue; figures carry 95 % intervals over users. With --lists, a
    Parquet file with the columns user_id and item_ids (lists, best first) is measured in the bundle's place.

    Args:
        data: the prepared dataset that the bundle was made from.
        bundle: what `recsys export` wrote.
        lists: a Parquet file of lists, or a folder of such files, instead of a bundle.
        split: test or validation.
        retrievers: which of the bundle's retrievers get a row, A,B; default all.
        baselines: run these beside it, A,B or all or all,-A; results are kept in RECSYS_CACHE (default
            ~/.cache/recsys).
        all_positives: of a time split, rank every positive of the period too, each after all events before it.
        rerank: rerankers to measure on the lists of some users, A,B: pointwise, pairwise-all, pairwise-heap,
            pairwise-sliding, listwise, first, full-list, set, embedding-feedback, cross-encoder.
        lm: their language model: a folder, or http(s)://host/v1#model, whose key is read from RECSYS_API_KEY.
        lm_dtype: numbers that a local model computes with; default bfloat16 on a GPU that has it, else float32, whose
            orders are the same everywhere. Processors with instructions for bfloat16 read prompts twice as fast in it.
        lm_prices: INPUT,CACHED,OUTPUT of a million of its tokens, such as 2.50,1.25,10, to count the cost in the same
            currency; default none, and a cost of 0.
        lm_timeout_s: seconds that a server may take for an answer, all tries together; default 60.
        lm_retries: how often a server that fails is asked again; default 2.
        lm_prefill: for servers that begin anew instead of going on with the beginning of an answer: leave that out.
        cross_encoder: folder of the model of cross-encoder.
        feedback: folder of a trained head of embedding-feedback; default none.
        prompt: name or file of another prompt than the method's own.
        rerank_top: items of a list that are reranked.
        rerank_weight: of the reranker's score beside the retriever's; default chosen on validation.
        rerank_users: users whose lists are reranked, and as many of validation.
        json: write all figures to this file too.
        seed: of the intervals, and of the draw of users.
    """
    if (bundle is None) == (lists is None):
        raise InputError("give either --bundle or --lists to say what to measure")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    if lists is not None and retrievers is not None:
        raise InputError("--retrievers chooses among those of a bundle; leave it out with --lists")
    if lists is not None and rerank is not None:
        raise InputError("--rerank reorders what a bundle retrieves; for --lists see `recsys rerank --lists`")
    model = ModelOptions.of_flags(lm_dtype, lm_prices, lm_timeout_s, lm_retries, lm_prefill)
    if rerank is None:
        refuse_rerank_flags(lm, model, cross_encoder, feedback, prompt, rerank_weight)
    reranked = () if rerank is None else RerankOptions.of_methods(
        rerank, lm=lm, model=model, cross_encoder=cross_encoder, feedback=feedback, prompt=prompt, top=rerank_top,
        weight=rerank_weight,
    )  # fmt: skip
    if lists is not None and all_positives:
        raise InputError("--all-positives needs a list after every event; leave it out with --lists")
    if json is not None:
        check_file_output(json, "--json")
    dataset = Dataset.open(data)
    if bundle is not None:
        names = None if retrievers is None else [name.strip() for name in retrievers.split(",") if name.strip()]
        result = evaluate_bundle(
            bundle, dataset, split=split, retrievers=names, baselines=baselines, all_positives=all_positives,
            rerank=reranked, rerank_users=rerank_users, seed=seed,
        )  # fmt: skip
    else:
        assert lists is not None
        result = evaluate_lists(lists, dataset, split=split, baselines=baselines, seed=seed)
    if json is not None:
        write_json(json, result)
    show(result, stdout_console())


def evaluate_bundle(
    bundle: Bundle | Path | str,
    data: Dataset | Path | str,
    *,
    split: str = "test",
    retrievers: Sequence[str] | None = None,
    baselines: str | None = None,
    all_positives: bool = False,
    rerank: Sequence[RerankOptions] = (),
    rerank_users: int = 200,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Figures of a bundle as the command's JSON holds them.

    Args:
        bundle: a bundle or its folder.
        data: the dataset that it was made from, or its folder.
        split: ``validation`` or ``test``.
        retrievers: names of those that get a row; None = all of the bundle.
        baselines: names separated by commas, or ``all``; None = none, and nothing is trained.
        all_positives: of a time split, rank every positive of the period too, as a part of its own.
        rerank: rerankers to measure, whose ``top`` are equal.
        rerank_users: users whose lists they order.
        seed: of the bootstrap intervals, and of the draw of these users.
        device: for a bundle given by its folder.

    Raises:
        InputError: an unknown name, another dataset, or a split without targets.
    """
    _check_split(split)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, device)
    bundle.check_data(dataset.manifest.data_hash, dataset.path)
    if all_positives and dataset.manifest.split["kind"] != "time":
        raise InputError(f"--all-positives: {dataset.path} has one target per user; it is for data split by time")
    requests = targets_of(dataset, split)
    names, notes = baseline_names(baselines, dataset)
    found = bundle_retrievers(bundle, retrievers, training_only=True)
    if not found:
        raise InputError(f"--retrievers names none; {bundle.path} has {', '.join(bundle.retrievers)}")
    states = BatchStates(bundle.model, dataset, keep_cache=any(one.reads_cache for one in found.values()))
    scorers = [RetrieverScorer(retriever, states) for retriever in found.values()]
    with _progress("ranking targets", len(scorers) * len(requests)) as advance:
        ranked = {one.name: one for one in rank_all(scorers, dataset, split, requests=requests, advance=advance)}
    default = ranked.get("dense") or next(iter(ranked.values()))
    result = _result(dataset, split, seed, default, "full")
    result["retrieval"] = {
        name: retrieval_row(one, dataset, seed=seed) | ({} if one is default else ndcg_minus(default, one, seed=seed))
        for name, one in ranked.items()
    }
    asked = questions(dataset, split)
    scorer = next(scorer for scorer in scorers if scorer.name == default.name)
    with _progress("ranking new users and items", sum(len(question.requests) for question in asked)) as advance:
        newcomers = rank_questions(asked, scorer, dataset, advance)
    if all_positives:
        result["all_positives"] = _all_positives(scorers, dataset, split, seed)
    if rerank:
        result["reranked"] = rerank_rows(
            bundle, dataset, split, default, rerank, num_users=rerank_users, seed=seed, progress=_lists_progress
        )
    result["notes"] = notes
    rows = slate_rows(dataset, SPLITS[split])
    ours: dict[str, ActionFigures] = {}
    if rows is not None and bundle.model.action_head is not None:
        predicted = predict_slates(bundle.model, dataset, SPLITS[split], graph=bundle.graph_train)
        served_SA, raw_SA = bundle_probabilities(bundle, rows, predicted)
        ours = _action_figures(dataset, rows, served_SA, seed, raw_SA)
        result["ranking"] = {action: figures.row() for action, figures in ours.items()}
        values = value_row(dataset, predicted)
        if values is not None:
            result["value"] = values
    others: dict[str, RankedTargets] = {}
    if names:
        learned = None if default.name == "dense_learned" else ranked.get("dense_learned")
        runs = BaselineRuns(dataset, bundle.graph_train)
        others = _add_baselines(result, names, runs, split, seed, (default, learned), rows, ours, asked)
    segments = segment_rows(default, dataset, seed=seed)
    result["segments"] = segments | newcomer_segments(asked, newcomers, others, seed=seed)
    return result


def evaluate_lists(
    lists: Path | str,
    data: Dataset | Path | str,
    *,
    split: str = "test",
    baselines: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of anyone's lists as the command's JSON holds them; see :func:`evaluate_bundle`.

    Figures that look further than the longest list are absent; a target that a list lacks is a miss.

    Raises:
        InputError: the lists are at fault, an unknown name, or a split without targets.
    """
    _check_split(split)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    names, notes = baseline_names(baselines, dataset)
    listed = ranked_lists(Path(lists), dataset, split)
    result = _result(dataset, split, seed, listed.ranked, "lists")
    result["retrieval"] = {"lists": retrieval_row(listed.ranked, dataset, seed=seed, depth=listed.depth)}
    result["segments"] = segment_rows(listed.ranked, dataset, seed=seed, depth=listed.depth)
    result["notes"] = [*notes, *listed.notes]
    if names:
        rows = slate_rows(dataset, SPLITS[split])
        _add_baselines(result, names, BaselineRuns(dataset), split, seed, (listed.ranked, None), rows, {}, ())
    return result


def _result(dataset: Dataset, split: str, seed: int, default: RankedTargets, candidates: str) -> dict[str, Any]:
    protocol = {
        "split": split,
        "history_filter": HISTORY_FILTER,
        "tie_rule": TIE_RULE,
        "candidates": candidates,
        "num_users": len(np.unique(default.requests.user)),
        "num_items": dataset.num_items,
        "num_unreachable": int((~default.reachable_Q).sum()),
        "num_tied": int(default.tied_Q.sum()),
        "segments_of": default.name,
        "data_hash": dataset.manifest.data_hash,
        "seed": seed,
    }
    return {"protocol": protocol}


def _all_positives(scorers: Sequence[RetrieverScorer], dataset: Dataset, split: str, seed: int) -> dict[str, Any]:
    """A row per retriever of every positive of the period; users are drawn with all their targets."""
    requests = dataset.requests(split, all_positives=True)
    with _progress("ranking all positives", len(scorers) * len(requests)) as advance:
        ranked = rank_all(scorers, dataset, split, requests=requests, advance=advance)
    return {
        one.name: {"num_targets": len(requests), "num_unreachable": int((~one.reachable_Q).sum())}
        | retrieval_row(one, dataset, seed=seed)
        for one in ranked
    }


def _add_baselines(
    result: dict[str, Any],
    names: Sequence[str],
    runs: BaselineRuns,
    split: str,
    seed: int,
    compared: tuple[RankedTargets, RankedTargets | None],
    rows: SlateRows | None,
    ours: dict[str, ActionFigures],
    asked: Sequence[Question],
) -> dict[str, RankedTargets]:
    """A row per baseline: of targets like a retriever's, or of slates per action; what was chosen for each; notes.

    Retrieval rows say how far the first of ``compared`` is ahead, and the second, the learned part, where there is one.

    Returns:
        what baselines make of the questions that they stand beside, by question.
    """
    dataset = runs.dataset
    out: dict[str, Any] = {}
    others: dict[str, RankedTargets] = {}
    with _progress("baselines", len(names)) as advance:
        for name in names:
            if name not in RANKING:
                beside = {one.kept_as: one for one in asked if one.beside == name and len(one.requests)}
                wanted = {split: compared[0].requests} | {what: one.requests for what, one in beside.items()}
                found = runs.ranked(name, wanted)
                others |= {one.name: found[what] for what, one in beside.items()}
                other = found[split]
                default, learned = compared
                out[name] = retrieval_row(other, dataset, seed=seed) | ndcg_minus(default, other, seed=seed)
                if learned is not None:
                    for key, value in ndcg_minus(learned, other, seed=seed).items():
                        out[name][key.replace("minus", "learned_minus")] = value
            elif rows is not None:
                figures = _action_figures(dataset, rows, runs.slates(name, SPLITS[split], rows), seed)
                out[name] = {
                    action: one.row() | (action_minus(ours[action], one) if action in ours else {})
                    for action, one in figures.items()
                }
            advance(1)
    result["baselines"] = out
    result["baseline_settings"] = {name: runs.settings[name] for name in out}
    result["notes"] += runs.notes()
    return others


def _action_figures(
    dataset: Dataset, rows: SlateRows, prob_SA: Any, seed: int, raw_SA: Any = None
) -> dict[str, ActionFigures]:
    """Figures of every action that some row knows the label of."""
    found = {
        action: ActionFigures(
            rows, place, prob_SA[:, place], seed=seed, raw_S=None if raw_SA is None else raw_SA[:, place]
        )
        for place, action in enumerate(dataset.manifest.actions)
    }
    return {action: figures for action, figures in found.items() if figures.num_rows}


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose test or validation")


def _progress(label: str, total: int) -> Any:
    return progress_bar(label, total, "baselines" if label == "baselines" else "requests")


def _lists_progress(label: str, total: int) -> Any:
    return progress_bar(label, total, "lists")
