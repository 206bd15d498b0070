"""Training of cross-encoders: what the text says is learned beside the score before it, resumed and read back."""

import json

import lightning as L
import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra llm")
pytest.importorskip("sentence_transformers", reason="needs the extra rag")

from recsys.errors import InputError
from recsys.pipelines.cli import main
from recsys.pipelines.rerank_fit_cross_encoder import start_folder
from recsys.pipelines.rerank_fit_figures import measured
from recsys.pipelines.rerank_fit_module import Tuning
from recsys.pipelines.rerank_fit_pairs import CrossEncoderModule, offset_scale, pair_examples
from recsys.pipelines.rerank_fit_run import RunFolder
from recsys.pipelines.rerank_fit_training import train_module
from recsys.pipelines.rerank_lists import RerankLists
from recsys.pipelines.rerank_options import RerankOptions
from recsys.retrieval.rerank.cross_encoder import CrossEncoderReranker
from recsys.retrieval.rerank.fusion import standardised
from recsys.retrieval.rerank.request import RerankItem, RerankRequest

LENGTH = 5


def saved_encoder(folder, kind="BertModel", outputs=1, hidden=32):
    import transformers

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789;()"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), "yes", "no"]
    tokenizer = Tokenizer(models.WordPiece(vocab={word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=outputs,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return saved_encoder(tmp_path_factory.mktemp("encoder"))


def made_lists(count=64):
    """Chosen is one of two items of the text "yes", that with the higher score before: it takes both to find it."""
    rng = np.random.default_rng(0)
    requests, gains = [], []
    for _ in range(count):
        score = np.sort(rng.normal(size=LENGTH))[::-1]
        yes = np.sort(rng.choice(LENGTH, 2, replace=False))
        requests.append(
            RerankRequest(
                candidates=[
                    RerankItem(item_id=f"i{at}", text="yes" if at in yes else "no", score=float(score[at]))
                    for at in range(LENGTH)
                ]
            )
        )
        gains.append(tuple(float(at == yes[0]) for at in range(LENGTH)))
    return RerankLists(
        kind="targets",
        requests=tuple(requests),
        user_Q=np.arange(count),
        user_ids=tuple(range(count)),
        target_ids=tuple(f"i{gain.index(1.0)}" for gain in gains),
        gains=tuple(gains),
        num_asked=count,
    )


def made_module(start, lists, judged=0, **tuning):
    from transformers import AutoModelForSequenceClassification

    reranker = CrossEncoderReranker(start)
    examples = pair_examples(reranker, lists)
    net = AutoModelForSequenceClassification.from_pretrained(start)
    return CrossEncoderModule(
        net, reranker.model.tokenizer, examples, examples[:judged], Tuning(**tuning), scale=offset_scale(examples)
    )


def test_pairs_are_the_reranker_s_own_and_scores_hold_the_earlier_one(encoder, tmp_path, monkeypatch):
    start, lists = start_folder(encoder, tmp_path / "start", 0), made_lists(3)
    reranker = CrossEncoderReranker(start)
    module = made_module(start, lists)
    module.eval()
    results = reranker.rerank(lists.requests)
    examples = pair_examples(reranker, lists)
    assert [one.num_tokens for one in examples] == [result.usage.prompt_tokens for result in results]
    short = RerankRequest(candidates=lists.requests[0].candidates[:2])
    (two,) = pair_examples(reranker, RerankLists(
        kind="targets", requests=(short,), user_Q=np.arange(1), user_ids=(0,), target_ids=("i0",), gains=((1.0, 0.0),),
        num_asked=1,
    ))  # fmt: skip
    batch = module._batch([two, *examples])
    with torch.no_grad():
        score_BC, all_B1 = module._scores(batch)
    assert batch.there_BC.sum().item() == 2 + 3 * LENGTH
    torch.testing.assert_close(all_B1[0, 0], score_BC[0, :2].logsumexp(0))
    for row, (request, result) in enumerate(zip(lists.requests, results, strict=True), start=1):
        earlier = standardised([item.score for item in request.candidates])
        expected = module._scale * earlier + np.array(result.scores)
        assert score_BC[row].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    # Activations that are computed twice change no gradient.
    gradients = []
    for kept in (1 << 20, 0):
        monkeypatch.setattr("recsys.pipelines.rerank_fit_pairs._KEPT_TOKENS", kept)
        module.net.zero_grad()
        module._losses(batch).sum().backward()
        gradients.append(module.net.classifier.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_the_scale_is_what_the_earlier_score_is_worth(encoder, tmp_path):
    reranker = CrossEncoderReranker(start_folder(encoder, tmp_path / "start", 0))
    examples = pair_examples(reranker, made_lists())
    assert 0.3 < offset_scale(examples) < 5

    def nats(scale):
        return sum(
            float(-torch.tensor(one.earlier).mul(scale).log_softmax(0)[one.gains.index(1.0)]) for one in examples
        )

    found = offset_scale(examples)
    assert nats(found) < min(nats(found - 0.05), nats(found + 0.05))
    worst = [type(one)(**{**{n: getattr(one, n) for n in one.__slots__}, "ranks": (2,) * 4 + (1,)}) for one in examples]
    assert offset_scale(worst) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"rank_weight": 0.0}, {"loss": "pg-rank"}])
def test_the_text_is_learned_beside_the_score(encoder, tmp_path, settings):
    lists = made_lists()
    start = start_folder(encoder, tmp_path / "start", 0)
    module = made_module(start, lists, lr=0.005, epochs=8, batch_lists=16, **settings)
    train_module(module, RunFolder(tmp_path / "out", {}, resume=False))
    module.net.save_pretrained(start)
    trained = CrossEncoderReranker(start)
    fused = measured(trained, lists, 0, "fused", weight=2.0)
    assert fused["given_ndcg@10_hits"] < 0.9
    assert fused["ndcg@10_hits"] > 0.97
    # The head alone cannot tell one "yes" from the other, and has not learned to.
    for request, result in zip(lists.requests, trained.rerank(lists.requests), strict=True):
        by_text = {"yes": set(), "no": set()}
        for item, score in zip(request.candidates, result.scores, strict=True):
            by_text[item.text].add(round(score, 3))
        assert len(by_text["yes"]) == 1 and min(by_text["yes"]) > max(by_text["no"])


class _Killed(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5:
            raise RuntimeError("killed")


def test_a_run_that_was_killed_ends_as_one_that_was_not(encoder, tmp_path):
    start, lists = start_folder(encoder, tmp_path / "start", 0), made_lists(24)
    tuning = {"lr": 0.005, "epochs": 3, "batch_lists": 8}
    whole = made_module(start, lists, 6, **tuning)
    figure = train_module(whole, RunFolder(tmp_path / "whole", {}, resume=False))
    with pytest.raises(RuntimeError, match="killed"):
        train_module(
            made_module(start, lists, 6, **tuning), RunFolder(tmp_path / "a", {}, resume=False), watchers=[_Killed()]
        )
    again = made_module(start, lists, 6, **tuning)
    run = RunFolder(tmp_path / "a", {}, resume=True)
    assert torch.load(run.last, weights_only=True)["global_step"] == 3
    assert train_module(again, run) == figure
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[key]), key


def command(bundle, data, lm, output, *more):
    words = f"rerank fit --method cross-encoder --bundle {bundle} --data {data} --lm {lm} --output {output} --k 30"
    sizes = "--users 6 --test-users 3 --valid-users 3 --max-tokens 100000 --batch-lists 4"
    return main([*words.split(), *sizes.split(), *more])


def test_the_command_writes_a_cross_encoder(toy_bundle, toy_dataset, encoder, tmp_path, capsys):
    from sentence_transformers import CrossEncoder

    output = tmp_path / "trained"
    assert command(toy_bundle, toy_dataset.path, encoder, output, "--epochs", "2") == 0
    about = json.loads((output / "rerank.json").read_text())
    assert about["method"] == "cross-encoder" and about["before"] is None and about["after"]["num_lists"] == 3
    assert about["learned"]["lists"] == 6 and about["weight"] >= 0 and about["scale"] >= 0
    assert f"--cross-encoder {output} --rerank-weight {about['weight']:g}" in " ".join(capsys.readouterr().out.split())
    assert not output.with_name("trained-run").exists()
    reranker = CrossEncoderReranker(output)
    request = made_lists(1).requests[0]
    (result,) = reranker.rerank([request])
    pairs = [(reranker.query(request), item.text) for item in request.candidates]
    plain = CrossEncoder(str(output), local_files_only=True).predict(pairs, show_progress_bar=False)
    assert plain.tolist() == pytest.approx(list(result.scores), abs=1e-5)  # logits, without an activation
    # Users whose targets it learned from choose no weight.
    options = RerankOptions(method="cross-encoder", cross_encoder=output)
    unseen = options.unseen_users(toy_dataset)
    assert 0 < len(unseen) < len(toy_dataset.requests("validation"))
    # A cross-encoder is trained further, and measured before.
    assert command(toy_bundle, toy_dataset.path, output, tmp_path / "more") == 0
    further = json.loads((tmp_path / "more" / "rerank.json").read_text())
    assert further["before"]["num_lists"] == 3


def test_bad_input_is_one_line_and_exit_2(toy_bundle, toy_dataset, encoder, tmp_path, capsys):
    three = saved_encoder(tmp_path / "three", "BertForSequenceClassification", 3)
    two = saved_encoder(tmp_path / "two", "BertForSequenceClassification", 2)
    bare = saved_encoder(tmp_path / "bare")
    (bare / "model.safetensors").rename(bare / "model.bin")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    for lm, more, words in (
        (tmp_path / "none", [], "holds no encoder"),
        (three, [], "has 3 outputs"),
        (two, [], "has 2 outputs"),
        (bare, [], "holds no .safetensors"),
        (encoder, ["--loss", "irpo"], "is of language models"),
        (encoder, ["--loss", "pg-rank", "--teacher", "orders.jsonl"], "pg-rank learns from what users chose"),
        (encoder, ["--add-missing"], "a target that is added has none"),
        (encoder, ["--max-tokens", "10"], "leaves 10 tokens an epoch"),
        (encoder, ["--resume"], "holds no run to go on with"),
        (encoder, ["--output", str(tmp_path / "used")], "is in use and holds no rerank.json"),
    ):
        code = command(toy_bundle, toy_dataset.path, lm, tmp_path / "out", *more)
        error = capsys.readouterr().err.strip().splitlines()
        assert code == 2 and words in error[-1] and error[-1].startswith("recsys rerank fit: "), error
    assert not (tmp_path / "out").exists() and not (tmp_path / "out-run").exists()
    with pytest.raises(InputError, match="cannot be made a cross-encoder"):
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / "config.json").write_text('{"model_type": "nothing"}')
        (tmp_path / "odd" / "model.safetensors").write_bytes(b"")
        start_folder(tmp_path / "odd", tmp_path / "start", 0)
