import math
import time

import pytest
import torch

from recsys.errors import InputError
from recsys.retrieval.rag.chunk_reuse import ChunkReuse
from recsys.retrieval.rag.chunk_store import ChunkStore

transformers = pytest.importorskip("transformers", reason="needs the extra llm")
PREFIX, QUESTION = list(range(10, 19)), list(range(200, 206))
A, B, C = list(range(20, 44)), list(range(50, 80)), list(range(90, 107))


@pytest.fixture(scope="module")
def model(small_lm_folder):
    return transformers.AutoModelForCausalLM.from_pretrained(small_lm_folder, dtype=torch.float32).eval()


@torch.no_grad()
def plain(model, prefix, chunks, question):
    tokens = [*prefix, *(token for chunk in chunks for token in chunk), *question]
    return model(input_ids=torch.tensor([tokens])).logits[0, -1]


def apart(state, expected):
    return float((state.logits_W - expected).abs().max())


def spread(state, expected):
    return float((state.logits_W.softmax(0) - expected.softmax(0)).abs().sum())


@pytest.mark.parametrize("whole_from", [0.5, 1.0])
def test_an_infinite_alpha_is_the_model_itself_and_reuses_equal_beginnings_only(model, whole_from):
    reuse = ChunkReuse(model, alpha=math.inf, whole_from=whole_from)
    for chunks, reused in (([A, B], 0), ([A, B], 63), ([A, C], 33), ([B, A], 9), ([A, C, B], 50), ([C], 9)):
        state = reuse.read(PREFIX, chunks, QUESTION)
        assert apart(state, plain(model, PREFIX, chunks, QUESTION)) < 1e-4
        assert state.counts.reused == state.counts.reused_exact == reused
        assert state.counts.computed + state.counts.reused == state.counts.prompt == state.num_tokens


def test_what_prefix_caching_kept_serves_any_alpha(model):
    reuse = ChunkReuse(model, alpha=math.inf)
    reuse.read(PREFIX, [A, B], QUESTION)
    reuse.alpha, reuse.whole_from = 0.5, 1.0
    state = reuse.read(PREFIX, [C, B], QUESTION)
    assert state.counts.recomputed == len(B) / 2
    assert reuse.read(PREFIX, [A, B], QUESTION).counts.computed == len(QUESTION)


def test_a_large_alpha_is_the_model_itself(model):
    """Where no overlap is left, a finite alpha may ask for everything as well."""
    reuse = ChunkReuse(model, alpha=1e9, whole_from=1.0)
    reuse.read(PREFIX, [A, B], QUESTION)
    state = reuse.read(PREFIX, [C, A], QUESTION)
    assert apart(state, plain(model, PREFIX, [C, A], QUESTION)) < 1e-4
    assert state.counts.reused == len(PREFIX)


def test_without_alpha_nothing_is_computed_again(model):
    reuse = ChunkReuse(model, alpha=0)
    reuse.read(PREFIX, [A, B, C], QUESTION)
    state = reuse.read(PREFIX, [C, B, A], QUESTION)
    assert state.counts.computed == len(QUESTION) and state.counts.recomputed == 0
    assert state.counts.reused_exact == len(PREFIX)
    assert apart(state, plain(model, PREFIX, [C, B, A], QUESTION)) > 1e-3


def test_more_recomputing_comes_closer(model):
    """Mean over prompts: tokens computed grow with alpha and the answer's distribution comes closer."""
    draw = torch.Generator().manual_seed(0)
    pool = [torch.randint(3, 250, (20,), generator=draw).tolist() for _ in range(6)]
    orders = [torch.randperm(6, generator=draw)[:4].tolist() for _ in range(12)]
    off, computed = [], []
    for alpha in (0.0, 0.5, 1.0, math.inf):
        reuse = ChunkReuse(model, alpha=alpha, whole_from=1.0)
        reuse.read(PREFIX, pool, QUESTION)
        states = [reuse.read(PREFIX, [pool[at] for at in order], QUESTION) for order in orders]
        truths = [plain(model, PREFIX, [pool[at] for at in order], QUESTION) for order in orders]
        off.append(sum(spread(state, truth) for state, truth in zip(states, truths, strict=True)))
        computed.append(sum(state.counts.computed for state in states))
    assert computed == sorted(computed) and len(set(computed)) == 4
    assert off[0] > off[2] > off[3] and off[3] < 1e-2


def test_the_tokens_computed_again_leaned_most_on_what_stood_before(model):
    reuse = ChunkReuse(model, alpha=0.5, whole_from=1.0)
    reuse.read(PREFIX, [A, B], QUESTION)
    (kept,) = reuse.store.variants(tuple(PREFIX), tuple(B))
    before = kept.keys_VHND.clone()
    state = reuse.read(PREFIX, [C, B], QUESTION)
    num_again = math.ceil(0.5 * kept.impact * len(B))
    assert state.counts.recomputed == num_again > 0
    assert state.counts.computed == len(C) + num_again + len(QUESTION)
    first = len(PREFIX) + len(C)
    values = state.kv.values_VHTD[:, :, first : first + len(B)]
    changed = (values != kept.values_VHND).flatten(0, 1).any(-1).any(0).nonzero()[:, 0].tolist()
    assert set(changed) <= set(kept.inter_N.topk(num_again).indices.tolist()) and changed
    assert torch.equal(kept.keys_VHND, before)
    assert len(reuse.store.variants(tuple(PREFIX), tuple(B))) == 1


def test_a_chunk_that_would_be_computed_mostly_is_kept_as_another_variant(model):
    reuse = ChunkReuse(model, alpha=1.0, whole_from=0.2)
    reuse.read(PREFIX, [A, B], QUESTION)
    reuse.read(PREFIX, [C, B], QUESTION)
    first, second = reuse.store.variants(tuple(PREFIX), tuple(B))
    assert (first.before, second.before) == ((tuple(C),), (tuple(A),)) and first.exact
    state = reuse.read(PREFIX, [A, B], QUESTION)
    assert state.counts.reused == len(PREFIX) + len(A) + len(B)
    assert apart(state, plain(model, PREFIX, [A, B], QUESTION)) < 1e-4


def test_a_chunk_behind_a_reused_one_is_not_kept_as_exact(model):
    reuse = ChunkReuse(model, alpha=0)
    reuse.read(PREFIX, [A, B], QUESTION)
    reuse.read(PREFIX, [B, C], QUESTION)
    (kept,) = reuse.store.variants(tuple(PREFIX), tuple(C))
    assert not kept.exact
    reuse.alpha = math.inf
    state = reuse.read(PREFIX, [B, C], QUESTION)
    assert apart(state, plain(model, PREFIX, [B, C], QUESTION)) < 1e-4 and state.counts.reused == len(PREFIX)
    (kept,) = reuse.store.variants(tuple(PREFIX), tuple(C))
    assert kept.exact


def test_no_chunks_empty_chunks_and_no_prefix(model):
    reuse = ChunkReuse(model)
    for chunks in ([], [[]]):
        state = reuse.read(PREFIX, chunks, QUESTION)
        assert apart(state, plain(model, PREFIX, [], QUESTION)) < 1e-4
    assert state.counts.reused == len(PREFIX)
    assert apart(reuse.read([], [], QUESTION), plain(model, [], [], QUESTION)) < 1e-4
    assert apart(reuse.read([], [A, [], B], QUESTION), plain(model, [], [A, B], QUESTION)) < 1e-4
    assert reuse.read([], [A, B], QUESTION).counts.computed == len(QUESTION)


def test_a_chunk_is_no_prefix(model):
    reuse = ChunkReuse(model, alpha=0)
    reuse.read([], [A, B], QUESTION)
    state = reuse.read(B, [C], QUESTION)
    assert apart(state, plain(model, B, [C], QUESTION)) < 1e-4 and state.counts.reused == 0


def test_labels_change_with_the_place_and_are_computed(model):
    one, two = [3, 4], [5]
    reuse = ChunkReuse(model, alpha=0)
    for _ in range(2):
        state = reuse.read(PREFIX, [A, B], QUESTION, labels=[one, two])
        assert apart(state, plain(model, PREFIX, [one, A, two, B], QUESTION)) < 1e-4
    assert state.counts.computed == 3 + len(QUESTION)
    swapped = reuse.read(PREFIX, [B, A], QUESTION, labels=[one, two])
    assert swapped.counts.computed == 3 + len(QUESTION) and swapped.counts.reused_exact == len(PREFIX)
    reuse.alpha = math.inf
    other = reuse.read(PREFIX, [A, B], QUESTION, labels=[one, one])
    assert apart(other, plain(model, PREFIX, [one, A, one, B], QUESTION)) < 1e-4
    assert other.counts.reused == len(PREFIX) + len(A)
    dropped = reuse.read(PREFIX, [[], A], QUESTION, labels=[two, one])
    assert apart(dropped, plain(model, PREFIX, [one, A], QUESTION)) < 1e-4
    with pytest.raises(InputError, match="2 chunks, but 1 labels"):
        reuse.read(PREFIX, [A, B], QUESTION, labels=[one])


def test_a_chunk_twice(model):
    reuse = ChunkReuse(model, alpha=0.5)
    expected = plain(model, PREFIX, [A, A], QUESTION)
    assert apart(reuse.read(PREFIX, [A, A], QUESTION), expected) < 1e-4
    again = reuse.read(PREFIX, [A, A], QUESTION)
    assert apart(again, expected) < 1e-4 and again.counts.computed == len(QUESTION)
    assert len(reuse.store.variants(tuple(PREFIX), tuple(A))) == 2


def test_another_prefix_shares_nothing(model):
    reuse = ChunkReuse(model, alpha=0)
    reuse.read(PREFIX, [A], QUESTION)
    assert reuse.read(PREFIX[1:], [A], QUESTION).counts.reused == 0


def test_a_store_without_room_and_a_store_of_another_model(model):
    none = ChunkReuse(model, max_bytes=0)
    for _ in range(2):
        state = none.read(PREFIX, [A, B], QUESTION)
    assert state.counts.reused == 0 and len(none.store) == 0
    assert apart(state, plain(model, PREFIX, [A, B], QUESTION)) < 1e-4
    shared = ChunkReuse(model, none.store)
    assert shared.store is none.store
    with pytest.raises(InputError, match="another model; give each model a store of its own"):
        ChunkReuse(model, ChunkStore("0" * 64, max_bytes=1))


def test_answers_are_those_of_greedy_decoding(model):
    reuse = ChunkReuse(model)
    reuse.read(PREFIX, [A, B], QUESTION)
    answer = reuse.answer(PREFIX, [A, B], QUESTION, max_tokens=12)
    tokens = [*PREFIX, *A, *B, *QUESTION]
    for _ in range(12):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    assert list(answer.tokens) == tokens[-12:] and answer.finish == "length"
    assert answer.counts.computed == len(QUESTION)
    stop = answer.tokens[4]
    stopped = reuse.answer(PREFIX, [A, B], QUESTION, max_tokens=12, stop=[stop])
    assert stopped.tokens == answer.tokens[: answer.tokens.index(stop)] and stopped.finish == "stop"
    late = reuse.answer(PREFIX, [A, B], QUESTION, max_tokens=12, deadline=time.monotonic() - 1)
    assert late.tokens == () and late.finish == "deadline"
    assert reuse.answer(PREFIX, [A, B], QUESTION, max_tokens=0).tokens == ()


def test_following_given_tokens_is_reading_them(model):
    reuse = ChunkReuse(model)
    state = reuse.read(PREFIX, [A, B], QUESTION, room=4)
    after = [30, 31, 32, 33]
    tokens = [*PREFIX, *A, *B, *QUESTION, *after]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens])).logits[0, -5:]
    assert (reuse.follow(state, after) - expected).abs().max() < 1e-4
    assert torch.equal(reuse.follow(state, []), state.logits_W[None])
    for call in (reuse.follow, lambda state, tokens: reuse.decode(state, max_tokens=len(tokens))):
        with pytest.raises(InputError, match="read the prompt with room=5"):
            call(state, [*after, 34])


def test_what_cannot_be_read(model):
    reuse = ChunkReuse(model)
    with pytest.raises(InputError, match="question has no token"):
        reuse.read(PREFIX, [A], [])
    with pytest.raises(InputError, match="token 100000 is not one of the model's"):
        reuse.read(PREFIX, [[100_000]], QUESTION)
    with pytest.raises(InputError, match="prompt and answer take 4109 tokens, the model reads 4096"):
        reuse.answer(PREFIX, [[5] * 4080], [1] * 10, max_tokens=10)
    for setting in ({"alpha": -1.0}, {"alpha": math.nan}, {"whole_from": 1.5}):
        with pytest.raises(InputError, match=next(iter(setting))):
            ChunkReuse(model, **setting)


@pytest.mark.slow
def test_smollm2_answers_from_chunks_in_another_order(smollm2_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prefix = ids("<|im_start|>user\nThings and their colours:\n")
    chunks = [ids(f"- The {thing} is {colour}.\n") for thing, colour in
              (("boat", "green"), ("train", "red"), ("kite", "yellow"), ("drum", "blue"))]  # fmt: skip
    question = ids("What colour is the train?<|im_end|>\n<|im_start|>assistant\n")
    exact = ChunkReuse(model, alpha=math.inf)
    moved = [chunks[3], *chunks[:3]]
    truth = plain(model, prefix, moved, question)
    assert apart(exact.read(prefix, moved, question), truth) < 1e-3
    reuse = ChunkReuse(model)
    reuse.read(prefix, chunks, question)
    state = reuse.read(prefix, moved, question, room=16)
    assert state.counts.reused >= len(prefix) + len(chunks[1]) + len(chunks[2])
    kl_nats = float((truth.softmax(0) * (truth.log_softmax(0) - state.logits_W.log_softmax(0))).sum())
    assert kl_nats < 0.1 and state.logits_W.argmax() == truth.argmax()
    assert tokenizer.decode(reuse.decode(state, max_tokens=6).tokens).startswith("The train is")
