"""Set-based prompting: no order in, none out; what a candidate's tokens see is the prefix and themselves."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from recsys.errors import InputError
from recsys.retrieval.rerank import RerankRequest
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.result import Faults
from recsys.retrieval.rerank.set_mask import set_layout
from recsys.retrieval.rerank.set_prompting import SetPromptingReranker
from recsys.retrieval.rerank.tally import in_turn
from recsys.shared_attention import attend_own, attend_shared, joined

pytest.importorskip("transformers", reason="needs the extra llm")


def shuffled(request: RerankRequest, seed: int) -> RerankRequest:
    candidates = list(request.candidates)
    random.Random(seed).shuffle(candidates)
    return replace(request, candidates=candidates)


def test_a_hundred_permutations_give_one_result(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    request = few_requests[0]
    twin = replace(request.candidates[0], item_id=5)  # equal text, another id
    request = replace(request, candidates=[*request.candidates, twin])
    reranker = SetPromptingReranker(small_lm, calibrate=False)
    (first,) = reranker.rerank([request])
    assert first.scores is not None and len(set(first.scores)) > 3
    of_id = dict(zip(request.ids, first.scores, strict=True))
    orders = set()
    for seed in range(100):
        mixed = shuffled(request, seed)
        (result,) = reranker.rerank([mixed])
        assert result.ids == first.ids
        assert dict(zip(mixed.ids, result.scores or (), strict=True)) == of_id
        orders.add(mixed.ids)
    assert len(orders) > 50


def test_the_mask_alone_makes_it_so(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    """Without the canonical order inside: equal up to rounding for every order of the tokens."""
    request = few_requests[0]
    reranker = SetPromptingReranker(small_lm)
    count = len(request.ids)
    expected = reranker.answer_likelihoods(reranker.parts(request, range(count)))
    assert max(expected) - min(expected) > 0.01
    for seed in range(20):
        order = random.Random(seed).sample(range(count), count)
        found = reranker.answer_likelihoods(reranker.parts(request, order))
        assert found == pytest.approx([expected[place] for place in order], abs=1e-4)


@pytest.mark.slow
def test_the_mask_of_a_trained_model(smollm2_folder: Path, few_requests: list[RerankRequest]) -> None:
    """Positions and masks reach a model whose order of words matters: a chain is not the set."""
    lm = LocalLanguageModel.load(smollm2_folder, device="cpu", dtype="float32")
    reranker = SetPromptingReranker(lm)
    expected = reranker.answer_likelihoods(reranker.parts(few_requests[0], range(5)))
    order = [3, 1, 4, 0, 2]
    found = reranker.answer_likelihoods(reranker.parts(few_requests[0], order))
    assert found == pytest.approx([expected[place] for place in order], abs=1e-3)
    chain = [[reranker.parts(few_requests[0], places)[1][0]] for places in ([0], [1], [2], [3], [4])]
    before, _, after, answers = reranker.parts(few_requests[0], range(5))
    one_by_one = reranker.answer_likelihoods([before, *chain, after, answers])
    assert max(abs(one - other) for one, other in zip(one_by_one, expected, strict=True)) > 1e-2


def hidden_states(lm: Any, parts: Sequence[Sequence[Sequence[int]]]) -> Any:
    layout = set_layout([[len(segment) for segment in group] for group in parts])
    tokens = [token for group in parts for segment in group for token in segment]
    with torch.inference_mode():
        return lm.model(
            input_ids=torch.tensor([tokens]),
            attention_mask=torch.where(layout.visible_NN, 0.0, -3e4)[None, None],
            position_ids=layout.position_N[None],
        ).logits[0]


def test_a_candidate_in_a_set_is_the_candidate_alone(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    """Its rows are those of the plain causal model over the prefix and itself."""
    parts = SetPromptingReranker(small_lm).parts(few_requests[0], range(5))
    logits_NV = hidden_states(small_lm, parts)
    (prefix,), candidates = parts[0], parts[1]
    start = len(prefix)
    for candidate in candidates:
        with torch.inference_mode():
            alone_NV = small_lm.model(torch.tensor([[*prefix, *candidate]])).logits[0]
        ours = logits_NV[start : start + len(candidate)]
        assert torch.allclose(ours, alone_NV[len(prefix) :], atol=1e-4)
        start += len(candidate)


def test_one_candidate_is_plain_text(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    """With one candidate the whole is one causal text, and the score its log-likelihood."""
    reranker = SetPromptingReranker(small_lm)
    parts = reranker.parts(few_requests[0], [2])
    (found,) = reranker.answer_likelihoods(parts)
    tokens = [token for group in parts for segment in group for token in segment]
    answer = parts[-1][0]
    with torch.inference_mode():
        log_prob_NV = small_lm.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    rows = range(len(tokens) - len(answer) - 1, len(tokens) - 1)
    expected = sum(float(log_prob_NV[row, token]) for row, token in zip(rows, answer, strict=True)) / len(answer)
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_prompt_is_that_of_the_template(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    """The parts one after the other are the chat as the model reads it."""
    request = few_requests[0]
    reranker = SetPromptingReranker(small_lm)
    order = sorted(range(5), key=lambda place: request.candidates[place].text)
    parts = reranker.parts(request, order)
    text = small_lm.tokenizer.decode([token for group in parts[:3] for segment in group for token in segment])
    (chat,) = reranker.questions(request)
    assert text == small_lm.tokenizer.decode(small_lm.encode_chat(chat, reranker.prompt.prefill))


@pytest.mark.parametrize("kind", ["softmax", "silu"])
def test_ranking_candidates_have_the_same_mask(kind: Any) -> None:
    """What candidates of a ranking request read in two parts is attention under the mask of a set of single rows."""
    torch.manual_seed(0)
    history, count, width = 7, 5, 4
    layout = set_layout([[history], [1] * count])
    q_NE, k_NE, v_NE = torch.randn(3, history + count, width, dtype=torch.float64)
    score_NN = q_NE @ k_NE.T
    if kind == "softmax":
        weight_NN = score_NN.masked_fill(~layout.visible_NN, -torch.inf).softmax(-1)
    else:
        weight_NN = F.silu(score_NN).masked_fill(~layout.visible_NN, 0.0)
    whole_NE = (weight_NN @ v_NE)[history:]
    q, k, v = q_NE[None, history:], k_NE[None], v_NE[None]
    shared = attend_shared(q, k[:, :history].mT, v[:, :history], None, kind=kind)
    own = attend_own((q * k[:, history:]).sum(-1, keepdim=True), v[:, history:], kind=kind)
    assert torch.allclose(joined(shared, own)[0], whole_NE, atol=1e-6)


def test_deadlines_and_prompts_that_do_not_fit(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    reranker = SetPromptingReranker(small_lm, item_chars=6000)
    results = reranker.rerank(few_requests, deadline=time.monotonic() - 1)
    assert [result.complete for result in results] == [False, True, True, False]
    assert all(result.ids == result.candidates for result in results)
    long = replace(few_requests[0].candidates[1], text="a longer name " * 400)
    (result,) = reranker.rerank([replace(few_requests[0], candidates=[few_requests[0].candidates[0], long])])
    assert not result.complete and result.faults.failed == 1 and "spans" in result.notes[0]


def test_a_late_list_does_not_wait_for_those_of_another_caller(
    small_lm: Any, few_requests: list[RerankRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = SetPromptingReranker(small_lm)
    begun, free = threading.Event(), threading.Event()

    def computing(parts: Any) -> list[float]:
        begun.set()
        free.wait(8)
        return [0.0] * len(parts[-1])

    monkeypatch.setattr(reranker, "answer_likelihoods", computing)
    other = threading.Thread(target=reranker.rerank, args=(few_requests,))
    other.start()
    try:
        assert begun.wait(8)
        start = time.monotonic()
        (result,) = reranker.rerank(few_requests[:1], deadline=start + 0.05)
        assert time.monotonic() - start < 4
    finally:
        free.set()
        other.join()
    assert result.ids == few_requests[0].ids and not result.complete and result.notes == ("the deadline passed",)


def test_numbers_that_are_none_keep_the_order_and_are_counted(
    small_lm: Any, few_requests: list[RerankRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker, request = SetPromptingReranker(small_lm), few_requests[0]
    monkeypatch.setattr(reranker, "answer_likelihoods", lambda parts: [float("nan"), *[-1.0] * (len(request.ids) - 1)])
    (result,) = reranker.rerank([request])
    assert result.ids == request.ids and result.scores is None and not result.complete
    assert result.faults == Faults(malformed=1) and "numbers that are none" in result.notes[0]


def test_a_model_that_cannot_compute_keeps_the_order(small_lm_folder: Path, few_requests: list[RerankRequest]) -> None:
    lm = LocalLanguageModel.load(small_lm_folder, device="cpu")
    head = lm.model.lm_head
    head.weight = torch.nn.Parameter(head.weight[:, :-1], requires_grad=False)  # shapes no longer fit
    result = SetPromptingReranker(lm).rerank(few_requests)[0]
    assert result.ids == few_requests[0].ids and result.faults == Faults(failed=1) and not result.complete
    assert "computing failed" in result.notes[0]


def test_what_is_taken_off_is_the_likelihood_without_a_user(small_lm: Any, few_requests: list[RerankRequest]) -> None:
    plain, calibrated = (SetPromptingReranker(small_lm, calibrate=on).rerank(few_requests)[0] for on in (False, True))
    nobody = replace(few_requests[0], history=(), query=None)
    (without,) = SetPromptingReranker(small_lm, calibrate=False).rerank([nobody])
    expected = [one - other for one, other in zip(plain.scores or (), without.scores or (), strict=True)]
    assert calibrated.scores == pytest.approx(expected, abs=1e-6)
    assert calibrated.usage.calls == 2 and calibrated.usage.prompt_tokens > plain.usage.prompt_tokens
    # Somebody of whom nothing is known: nothing is left, and every list has an order all the same.
    (nothing,) = SetPromptingReranker(small_lm, calibrate=True).rerank([nobody])
    assert nothing.scores == (0.0,) * 5 and set(nothing.ids) == set(nobody.ids)


def test_settings_are_checked(small_lm: Any, small_lm_folder: Path) -> None:
    with pytest.raises(InputError, match="local folder"):
        SetPromptingReranker(object())  # type: ignore[arg-type]
    system = Prompt(
        name="x", system="$candidates", user="$history", placeholders={"candidates": "all", "history": "some"}
    )
    with pytest.raises(InputError, match="must stand in `user`"):
        SetPromptingReranker(small_lm, prompt=system)


def test_a_lock_is_waited_for_no_longer_than_the_deadline():
    lock = threading.Lock()
    assert in_turn(lock, time.monotonic() + 1e300) and not in_turn(lock, time.monotonic() + 0.01)
    assert not in_turn(lock, time.monotonic() - 1)
    lock.release()
    assert not in_turn(lock, time.monotonic() - 1) and in_turn(lock, None)
