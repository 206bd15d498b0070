"""The command ``candidates``: lists of items for every user, as sharded Parquet.

Suffixes: U = chosen users, Q = requests of a shard, K = hits, C = ranked hits, A = actions.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import MOST_TIME
from recsys.files import atomic_file, sha256_file
from recsys.past_counts import PastLog
from recsys.pipelines.candidate_plan import CandidatePlan, open_output, part_name
from recsys.pipelines.candidate_rerank import ListReorder
from recsys.pipelines.candidate_rules import ListRules
from recsys.pipelines.candidate_search import CandidateLists, CandidateSearch
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.id_list import read_ids
from recsys.pipelines.language_model import ModelDtype, ModelOptions
from recsys.pipelines.newer_data import Translation
from recsys.pipelines.rerank_options import RerankOptions, refuse_rerank_flags
from recsys.pipelines.rule_file import read_rules
from recsys.pipelines.user_shard import UserShard
from recsys.tokenizers.table_columns import table_rows

__all__ = ["candidates"]

Ints = NDArray[np.int64]


def candidates(
    bundle: Path,
    data: Path,
    output: Path,
    k: int = 500,
    rank: int = 0,
    split: str = "now",
    at: int | None = None,
    retrievers: str = "dense",
    users: Path | None = None,
    allow: Path | None = None,
    exclude: Path | None = None,
    rules: Path | None = None,
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
    batch_users: int = 512,
    shard_users: int = 20000,
    resume: bool = False,
) -> None:
    """Write candidates for every user: one row each, items in the order of retrieval, as sharded Parquet.

    Columns: user_id and the parallel lists item_ids, retriever and retrieval_scores; with --rank also rank_scores (the
    sum of the probabilities of the positive actions) and prob_ACTION for every action, null beyond the ranked ones.
    Items of a user's earlier events are never returned. A row is shorter than k where fewer items are left. With
    --rerank the first items stand in the reranker's order, each with its own scores. With --rules a list is the page
    that `recsys recommend` gives for the same rules, k and time; where a rule explores, the list propensity says with
    which probability each item was taken for its place.

    Args:
        bundle: what `recsys export` wrote.
        data: the prepared dataset with the users and their events; for the split now it may be newer than the bundle.
        output: folder for part-00000.parquet and so on; it must be empty unless a run is resumed.
        k: items per user.
        rank: how many of the first items get probabilities; 0 = none.
        split: now (everything known), or validation or test (every history up to its target).
        at: time of the requests of the split now; default the largest timestamp in the data.
        retrievers: who finds the items, A,B: dense, dense_learned, memory, generative, parallel,
            set, hybrid; several take turns.
        users: only these: Parquet or CSV with a column user_id, or text with one id per line.
        allow: return only these items: Parquet or CSV with a column item_id, or text with one id per line.
        exclude: never return these items; a file as for --allow.
        rules: JSON list of business rules, such as [{"rule": "cap", "column": "brand", "n": 2}].
        rerank: put the first items in another order by this method: pointwise, pairwise-all, pairwise-heap,
            pairwise-sliding, listwise, first, full-list, set, embedding-feedback, cross-encoder.
        lm: its language model: a folder, or http(s)://host/v1#model, whose key is read from RECSYS_API_KEY.
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
        rerank_top: how many of the first items.
        rerank_weight: of the reranker's score beside the retriever's; default its order alone.
        batch_users: users encoded together.
        shard_users: users per part file.
        resume: go on with what a killed run left; parts already complete are kept.
    """
    for flag, number, least in (
        ("--k", k, 1), ("--rank", rank, 0), ("--batch-users", batch_users, 1), ("--shard-users", shard_users, 1)
    ):  # fmt: skip
        if number < least:
            raise InputError(f"{flag} must be at least {least}, got {number}")
    if at is not None and split != "now":
        raise InputError(f"--at sets the time of the split now; the requests of {split} have their targets' times")
    if at is not None and not abs(at) < MOST_TIME:
        raise InputError(f"--at {at} is too large; give the time as the timestamps count it")
    model = ModelOptions.of_flags(lm_dtype, lm_prices, lm_timeout_s, lm_retries, lm_prefill)
    if rerank is None:
        refuse_rerank_flags(lm, model, cross_encoder, feedback, prompt, rerank_weight)
    options = None if rerank is None else RerankOptions(
        method=rerank, lm=lm, model=model, cross_encoder=cross_encoder, feedback=feedback, prompt=prompt,
        top=rerank_top, weight=rerank_weight,
    )  # fmt: skip
    names = list(dict.fromkeys(name.strip() for name in retrievers.split(",")))
    given = [] if rules is None else read_rules(rules)
    dataset = Dataset.open(data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = Bundle.open(bundle, device)
    newer = _translation(dataset, loaded, split)
    allow_N, chosen_by = _allowed(loaded, allow, exclude), None
    if rules is not None:
        chosen_by = ListRules(rules, given, loaded, names, k=k, rank=rank, allow_N=allow_N)
        allow_N = chosen_by.allow_N
        for note in chosen_by.notes():
            stdout_console().print(f"note: {note}", markup=False)
    reorder = None if options is None else ListReorder(options.chain(loaded, training_only=split != "now"), loaded)
    search = CandidateSearch(
        loaded,
        names,
        k=k,
        rank=rank,
        training_only=split != "now",
        allow_N=allow_N,
        batch_users=batch_users,
        # Validation and test know what happened before their requests, and nothing else.
        past=PastLog.of(dataset) if rank and split != "now" and loaded.past is not None else None,
        reorder=reorder,
        rules=chosen_by if chosen_by is not None and chosen_by.chooses else None,
    )
    user_U = _chosen(dataset, split, users)
    plan = CandidatePlan(
        bundle_hash=str(loaded.manifest["checksum"]),
        data_hash=dataset.manifest.data_hash,
        split=split,
        at=(dataset.manifest.max_timestamp if at is None else at) if split == "now" else None,
        k=k,
        rank=rank,
        retrievers=names,
        users=None if users is None else sha256_file(users),
        allow=None if allow is None else sha256_file(allow),
        exclude=None if exclude is None else sha256_file(exclude),
        batch_users=batch_users,
        shard_users=shard_users,
        num_parts=max(1, -(-len(user_U) // shard_users)),
        device=device,
        rerank=None if options is None else options.identity(),
        rules=None if rules is None else sha256_file(rules),
    )
    done = open_output(output, plan, resume)
    began, num_written = time.perf_counter(), 0
    with progress_bar("candidates", len(user_U), unit="users") as advance:
        for number in range(plan.num_parts):
            part_U = user_U[number * shard_users : (number + 1) * shard_users]
            if number in done:
                advance(len(part_U))
                continue
            shard = UserShard(dataset, part_U)
            requests = shard.requests(split, at=plan.at)
            events = shard.events if newer is None else newer.events(shard.events)
            lists = search.lists(events, requests, advance, _user_features(shard, loaded), shard.user_ids)
            if reorder is not None:
                reorder.check()
            frame = _frame(shard.user_ids.gather(requests.user), lists, loaded, search.labels)
            with atomic_file(output / part_name(number)) as partial:
                frame.write_parquet(partial, compression="zstd", compression_level=1, statistics=False)
            num_written += len(frame)
    seconds = time.perf_counter() - began
    stdout_console().print(
        f"candidates {output}: {len(user_U):,} users in {plan.num_parts} parts, {num_written:,} of them written now "
        f"in {seconds:.1f} s ({num_written / max(seconds, 1e-9):,.0f} users/s)"
    )
    said = [*(() if chosen_by is None else chosen_by.report()), *(() if reorder is None else reorder.report())]
    for line in said:
        stdout_console().print(line, markup=False)


def _chosen(dataset: Dataset, split: str, users: Path | None) -> Ints:
    """Internal users that get a row, strictly rising."""
    if split == "now":
        user_U = np.arange(dataset.num_users, dtype=np.int64)
    elif split in ("validation", "test"):
        at_U = dataset.valid_at if split == "validation" else dataset.test_at
        user_U = np.flatnonzero(at_U >= 0)
    else:
        raise InputError(f"--split: there is no split {split!r}; choose now, validation or test")
    if users is None:
        return user_U
    asked = dataset.user_index(read_ids(users, "user_id", "--users"))
    if not (asked >= 0).any():
        raise InputError(f"--users: {dataset.path} holds none of the {len(asked)} users of {users}")
    num_strange = int((asked < 0).sum())
    if num_strange:
        stdout_console().print(f"note: {num_strange} users of {users} are not in {dataset.path} and get no row")
    return np.intersect1d(user_U, asked[asked >= 0])


def _translation(dataset: Dataset, bundle: Bundle, split: str) -> Translation | None:
    """How to read events of other data than the bundle was made from; None where it is the same."""
    data_hash = dataset.manifest.data_hash
    if split != "now":
        bundle.check_data(data_hash, dataset.path)
    if data_hash == bundle.data_hash:
        return None
    newer = Translation(dataset.vocabulary, bundle.vocabulary)
    if newer.num_strange_items == dataset.num_items:
        raise InputError(
            f"{bundle.path} knows none of the {dataset.num_items:,} items of {dataset.path}; give the dataset that the "
            "model was trained on, or a later state of it"
        )
    stdout_console().print(
        f"note: {dataset.path} is not the data that {bundle.path} was made from; ids, actions and surfaces are matched "
        f"by name, and {newer.num_strange_items:,} of {dataset.num_items:,} items are unknown to the bundle"
    )
    return newer


def _allowed(bundle: Bundle, allow: Path | None, exclude: Path | None) -> Ints | None:
    """Internal items that may be returned, strictly rising; None = all."""
    if allow is None and exclude is None:
        return None
    words = bundle.vocabulary.items
    allow_N = np.arange(len(words), dtype=np.int64)
    if allow is not None:
        allow_N = np.intersect1d(allow_N, words.index(read_ids(allow, "item_id", "--allow")))
        if not len(allow_N):
            raise InputError(f"--allow: the catalogue of {bundle.path} holds none of the items of {allow}")
    if exclude is not None:
        allow_N = np.setdiff1d(allow_N, words.index(read_ids(exclude, "item_id", "--exclude")))
    return allow_N


def _user_features(shard: UserShard, bundle: Bundle) -> NDArray[np.float32] | None:
    """[U, K] of the shard's users, read as the bundle's model does; also where the dataset is a later one."""
    if not bundle.user_blocks:
        return None
    try:
        return table_rows(bundle.user_blocks, shard.users, shard.user_ids)
    except ValueError as error:
        raise InputError(f"the users table of {shard.path}, {error}") from error


def _frame(user_ids: pl.Series, lists: CandidateLists, bundle: Bundle, names: list[str]) -> pl.DataFrame:
    """The table of a shard, in the callers' ids."""
    item_QK, count_Q = lists.item_QK, lists.count_Q
    found_QK = item_QK >= 0
    labels = pl.Series(names, dtype=pl.String).gather(lists.retriever_QK.reshape(-1))
    columns = {
        "item_ids": _nested(bundle.vocabulary.items.ids.gather(np.where(found_QK, item_QK, 0).reshape(-1)), item_QK),
        "retriever": _nested(labels, item_QK),
        "retrieval_scores": _nested(pl.Series(lists.score_QK.reshape(-1)), item_QK),
    }
    if lists.propensity_QK is not None:
        columns["propensity"] = _nested(pl.Series(lists.propensity_QK.reshape(-1)), item_QK)
    if lists.prob_QCA.shape[1]:
        positive = bundle.manifest["positives"]
        weight_A = np.array([name in positive for name in bundle.vocabulary.actions], dtype=np.float32)
        ranked = {"rank_scores": lists.prob_QCA @ weight_A}
        ranked |= {f"prob_{name}": lists.prob_QCA[..., a] for a, name in enumerate(bundle.vocabulary.actions)}
        for name, value_QC in ranked.items():
            value_QK = np.full(item_QK.shape, np.nan, dtype=np.float32)
            value_QK[:, : value_QC.shape[1]] = value_QC
            columns[name] = _nested(pl.Series(value_QK.reshape(-1)).fill_nan(None), item_QK)
    frame = pl.DataFrame({"user_id": user_ids, **columns})
    if found_QK.all():
        return frame
    cut = pl.lit(pl.Series("count", count_Q))
    return frame.with_columns(pl.col(name).list.head(cut) for name in columns)


def _nested(flat: pl.Series, item_QK: NDArray[np.int32]) -> pl.Series:
    """Rows of K values as a column of lists."""
    if not item_QK.size:
        return pl.Series([[] for _ in item_QK], dtype=pl.List(flat.dtype))
    return flat.reshape(item_QK.shape).arr.to_list()
