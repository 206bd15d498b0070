import pytest
import torch

from recsys.errors import InputError
from recsys.retrieval.rag.chunk_forward import ChunkForward, weights_hash

transformers = pytest.importorskip("transformers", reason="needs the extra llm")
SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def made(name, seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{name}Config")(**{**SIZE, **settings})
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 4, "attention_bias": True}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}}),
        ("Mistral", {"sliding_window": None, "head_dim": 12}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 16}),
    ],
)
def test_computes_what_the_model_computes(name, settings):
    model = made(name, **settings)
    forward = ChunkForward(model)
    tokens = torch.randint(97, (70,), generator=torch.Generator().manual_seed(1))
    kv = forward.empty(70)
    watch, segments = torch.zeros(70, dtype=torch.bool), torch.ones(70, 1)
    watch[10:30] = True
    last, watched = forward.rows(kv, tokens, torch.arange(70), watch_R=watch, segments_TS=segments)
    out = model(input_ids=tokens[None], use_cache=True)
    assert (forward.logits(last) - out.logits[0]).abs().max() < 1e-4
    for at, layer in enumerate(out.past_key_values.layers):
        assert (kv.keys_VHTD[at] - layer.keys[0]).abs().max() < 1e-4
        assert (kv.values_VHTD[at] - layer.values[0]).abs().max() < 1e-4
    assert watched.keys_VHRD.shape == (
        3,
        forward.empty(1).keys_VHTD.shape[1],
        20,
        model.model.layers[0].self_attn.head_dim,
    )
    assert (watched.mass_RS - 1).abs().max() < 1e-5


def test_attention_to_segments_is_that_of_the_model():
    model = made("Llama")
    model.set_attn_implementation("eager")
    forward = ChunkForward(model)
    tokens = torch.arange(40) * 5 % 97
    watch, segments = torch.zeros(40, dtype=torch.bool), torch.zeros(40, 2)
    watch[12:20] = watch[30:] = True
    segments[5:12, 0] = segments[12:20, 1] = 1
    _, watched = forward.rows(forward.empty(40), tokens, torch.arange(40), watch_R=watch, segments_TS=segments)
    weights = torch.stack(model(input_ids=tokens[None], output_attentions=True).attentions).mean((0, 1, 2)).detach()
    assert (watched.mass_RS - (weights @ segments)[watch]).abs().max() < 1e-5


def test_keys_placed_elsewhere_are_those_computed_there():
    """A first layer's keys depend on token and place alone: kept ones turned to a new place must equal them."""
    model = made("Llama")
    forward = ChunkForward(model)
    chunk = torch.arange(20, 32)
    kept = forward.empty(12)
    every = torch.ones(12, dtype=torch.bool)
    _, watched = forward.rows(kept, chunk, torch.arange(12), watch_R=every, segments_TS=torch.ones(12, 1))
    there, placed = forward.empty(400), forward.empty(400)
    forward.rows(there, chunk, torch.arange(333, 345))
    forward.place(placed, 333, watched.keys_VHRD, kept.values_VHTD)
    assert (placed.keys_VHTD[0] - there.keys_VHTD[0]).abs().max() < 1e-6
    assert torch.equal(placed.values_VHTD[0], there.values_VHTD[0])
    assert (placed.keys_VHTD[0, :, 333:345] - kept.keys_VHTD[0]).abs().max() > 0.1
    # Behind nothing, relative places are all that counts: every layer agrees when nothing stands before.
    alone = forward.empty(12)
    forward.place(alone, 0, watched.keys_VHRD, kept.values_VHTD)
    assert torch.equal(alone.keys_VHTD, kept.keys_VHTD)


def test_some_rows_over_given_keys_and_values():
    model = made("Qwen2")
    forward = ChunkForward(model)
    tokens = torch.arange(50) * 3 % 97
    whole = forward.empty(50)
    last, _ = forward.rows(whole, tokens, torch.arange(50))
    places = ints(4, 5, 17, 30, 49)
    again, _ = forward.rows(whole, tokens[places], places)
    assert (again - last[places]).abs().max() < 1e-5


def test_bfloat16():
    model = made("Llama", initializer_range=0.1).to(torch.bfloat16)
    forward = ChunkForward(model)
    tokens = torch.arange(40)
    last, _ = forward.rows(forward.empty(40), tokens, torch.arange(40))
    theirs = model(input_ids=tokens[None]).logits[0].float()
    assert forward.empty(1).keys_VHTD.dtype == torch.bfloat16
    assert (forward.logits(last) - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_a_window_limits_the_context():
    assert ChunkForward(made("Mistral", sliding_window=100)).context_tokens == 100
    assert ChunkForward(made("Qwen2", sliding_window=100, use_sliding_window=False)).context_tokens == 512


def test_other_models_are_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(InputError, match="'dynamic' depends on the prompt's length"):
        ChunkForward(made("Llama", rope_parameters=rope))
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="GPT2LMHeadModel is not, answer without reuse"):
        ChunkForward(gpt2)
    with pytest.raises(InputError, match="GraniteForCausalLM is not.*something else"):
        ChunkForward(made("Granite", embedding_multiplier=12.0))
    with pytest.raises(InputError, match="PhiForCausalLM is not"):
        ChunkForward(made("Phi"))


def test_the_hash_is_of_the_weights():
    model = made("Llama")
    assert weights_hash(model) == weights_hash(made("Llama")) != weights_hash(made("Llama", seed=1))
    assert weights_hash(model) != weights_hash(made("Llama", rms_norm_eps=1e-4))
    before = weights_hash(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    assert weights_hash(model) != before
