"""Fine-tuning of language models on lists: what is asked, that it learns, resumes and is read back."""

import json
import shutil
from dataclasses import dataclass, replace

import lightning as L
import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra llm")
pytest.importorskip("peft", reason="needs the extra llm")

from safetensors.torch import load_file

from recsys.errors import InputError
from recsys.pipelines import rerank_fit, rerank_fit_module
from recsys.pipelines.cli import main
from recsys.pipelines.language_model import ModelOptions, named_model
from recsys.pipelines.rerank_fit_examples import ExampleMaker, collate, within_budget
from recsys.pipelines.rerank_fit_module import LOSSES, Tuning, in_parts
from recsys.pipelines.rerank_fit_run import RunFolder
from recsys.pipelines.rerank_fit_teacher import teacher_ranks
from recsys.pipelines.rerank_fit_training import train_reranker
from recsys.pipelines.rerank_lists import RerankLists
from recsys.retrieval.rerank.first import FirstReranker
from recsys.retrieval.rerank.full_list import FullListReranker
from recsys.retrieval.rerank.lm.adapter import TRAINED, fingerprint, load_adapter
from recsys.retrieval.rerank.lm.chat_tokens import ChatTokens
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.prompt import Prompt
from recsys.retrieval.rerank.request import RerankItem, RerankRequest

PLACES = {
    "first": ("history", "query", "candidates"),
    "full-list": ("history", "query", "count", "top", "example", "candidates"),
}


@dataclass(frozen=True)
class Counted:
    num_tokens: int


def made_lists(count=64, length=4):
    """The item that is chosen has the text "yes", the others "no"."""
    rng = np.random.default_rng(0)
    requests, gains = [], []
    for _ in range(count):
        chosen = int(rng.integers(length))
        items = [RerankItem(item_id=f"i{at}", text="yes" if at == chosen else "no") for at in range(length)]
        requests.append(RerankRequest(candidates=items))
        gains.append(tuple(float(at == chosen) for at in range(length)))
    return RerankLists(
        kind="targets",
        requests=tuple(requests),
        user_Q=np.arange(count),
        user_ids=tuple(range(count)),
        target_ids=tuple(f"i{gain.index(1.0)}" for gain in gains),
        gains=tuple(gains),
        num_asked=count,
    )


def reranker_of(lm, loss):
    """A reranker that says no more than the candidates, so that a step takes milliseconds."""
    kind = "full-list" if loss == "full-list" else "first"
    names = PLACES[kind]
    user = "".join(f"${name}" for name in names[:-1]) + "\n$candidates"
    prompt = Prompt(
        name="short", user=user, placeholders=dict.fromkeys(names, ""), prefill="[", options={"history_items": 0}
    )
    return (FullListReranker if kind == "full-list" else FirstReranker)(lm, prompt=prompt)


def examples_of(lm, loss, lists, **settings):
    return ExampleMaker(reranker_of(lm, loss), ChatTokens(lm.tokenizer, "here"), **settings).of(lists)


def wrapped(net, lm):
    """A network that was trained, asked as every language model is."""
    return LocalLanguageModel(net, lm.tokenizer, name="trained")


def test_questions_are_the_reranker_s_own_and_answers_name_the_wanted_order(small_lm_folder):
    lm, lists = LocalLanguageModel.load(small_lm_folder), made_lists(3)
    for loss in ("first", "full-list"):
        reranker = reranker_of(lm, loss)
        for request, example in zip(lists.requests, examples_of(lm, loss, lists), strict=True):
            (chat,) = reranker.questions(request)
            assert list(example.prompt_ids) == lm.encode_chat(chat, "[")
            chosen = example.gains.index(1.0)
            if loss == "first":
                assert lm.tokenizer.decode(list(example.option_ids)) == "ABCD"
                assert example.ranks == tuple(1 if at == chosen else 2 for at in range(4))
                continue
            rest = [str(at + 1) for at in range(4) if at != chosen]
            text = lm.tokenizer.decode(example.answer_ids[:-1])
            assert "[" + text == " > ".join(f"[{name}]" for name in [str(chosen + 1), *rest])
            assert [rank for rank in example.answer_ranks if rank] == [1, 2, 3, 4]
            assert example.answer_ids[-1] in ChatTokens(lm.tokenizer, "here").stop_ids


def test_answers_have_the_tokens_that_the_whole_text_has(small_lm_folder, spacing_tokenizer):
    lists, tokens = made_lists(1, length=12), ChatTokens(spacing_tokenizer, "here")
    reranker = reranker_of(LocalLanguageModel.load(small_lm_folder), "full-list")
    (example,) = ExampleMaker(reranker, tokens).of(lists)
    names = [str(place + 1) for place in np.argsort(example.ranks)]
    whole = " > ".join(f"[{name}]" for name in names)
    (chat,) = reranker.questions(lists.requests[0])
    assert [*example.prompt_ids, *example.answer_ids[:-1]] == tokens.encode(chat, whole)[0]
    ranks = [rank for rank in example.answer_ranks if rank]
    assert ranks == [rank for rank, name in enumerate(names, start=1) for _ in name]


def test_shuffled_lists_keep_what_belongs_to_each_item(small_lm_folder):
    lm, lists = LocalLanguageModel.load(small_lm_folder), made_lists(8)
    plain, mixed = (examples_of(lm, "first", lists, shuffle=shuffle) for shuffle in (False, True))
    assert [one.gains for one in plain] != [one.gains for one in mixed]
    for one in mixed:
        assert one.gains.index(1.0) == one.ranks.index(1)
        question = lm.tokenizer.decode(list(one.prompt_ids))
        assert f"[{'ABCD'[one.gains.index(1.0)]}] yes" in question and question.count("yes") == 1


def test_a_budget_keeps_the_first_lists_and_batches_are_padded_on_the_left(small_lm_folder):
    lm = LocalLanguageModel.load(small_lm_folder)
    examples = examples_of(lm, "full-list", made_lists(4))
    tokens = [one.num_tokens for one in examples]
    assert within_budget(examples, sum(tokens[:2])) == examples[:2]
    with pytest.raises(InputError, match="the first list alone has"):
        within_budget(examples, tokens[0] - 1)
    shorter = examples_of(lm, "full-list", made_lists(1, length=3))
    batch = collate([examples[0], shorter[0]], pad_id=0)
    assert batch.mask_BN.sum(1).tolist() == [tokens[0], shorter[0].num_tokens]
    assert batch.ids_BN[1, -shorter[0].num_tokens :].tolist() == [*shorter[0].prompt_ids, *shorter[0].answer_ids]
    assert batch.there_BC.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert (batch.answer_rank_BA[1, : -len(shorter[0].answer_ids)] == -1).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_what_the_text_says(small_lm_folder, tmp_path, loss):
    lm, lists = LocalLanguageModel.load(small_lm_folder), made_lists()
    before = lists.ndcg([one.ids for one in reranker_of(lm, loss).rerank(lists.requests)]).mean()
    lm = LocalLanguageModel.load(small_lm_folder)
    examples, tuning = (
        examples_of(lm, loss, lists),
        Tuning(loss=loss, lr=0.01, epochs=12 if loss == "pg-rank" else 7, batch_lists=16),
    )
    run = RunFolder(tmp_path / "out", {}, resume=False)
    net, _ = train_reranker(lm, examples, [], tuning, run, lora_rank=0)
    after = lists.ndcg([one.ids for one in reranker_of(wrapped(net, lm), loss).rerank(lists.requests)]).mean()
    assert before < 0.75
    assert after > 0.95


class _Overflows(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        next(pl_module.parameters()).data[0] = torch.inf


@pytest.mark.parametrize(
    ("lr", "watchers", "said"),
    [(1e30, [], r"the loss of step \d+ is no number"), (0.01, [_Overflows()], "left weights that are no numbers")],
)
def test_weights_that_are_no_numbers_are_not_kept(small_lm_folder, tmp_path, lr, watchers, said):
    lm = LocalLanguageModel.load(small_lm_folder)
    examples, run = examples_of(lm, "first", made_lists(8)), RunFolder(tmp_path / "out", {}, resume=False)
    tuning = Tuning(lr=lr, batch_lists=8 if watchers else 1)
    with pytest.raises(InputError, match=f"{said}.*; give a lower --lr"):
        train_reranker(lm, examples, [], tuning, run, lora_rank=0, watchers=watchers)


class _Killed(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5:
            raise RuntimeError("killed")


def trained_weights(folder, tmp_path, name, *, killed):
    lm, lists = LocalLanguageModel.load(folder), made_lists(24)
    examples = examples_of(lm, "pg-rank", lists)
    tuning = Tuning(loss="pg-rank", lr=0.01, epochs=3, batch_lists=8)
    run = RunFolder(tmp_path / name, {"seed": 0}, resume=False)
    if killed:
        with pytest.raises(RuntimeError, match="killed"):
            train_reranker(lm, examples, examples[:6], tuning, run, lora_rank=4, watchers=[_Killed()])
        assert torch.load(run.last, weights_only=True)["global_step"] == 3  # the end of the first epoch
        lm, run = LocalLanguageModel.load(folder), RunFolder(tmp_path / name, {"seed": 0}, resume=True)
    net, figure = train_reranker(lm, examples, examples[:6], tuning, run, lora_rank=4)
    stored = torch.load(run.last, weights_only=True)
    assert stored["global_step"] == 9 and all("lora_" in key for key in stored["state_dict"])
    return {key: value for key, value in net.state_dict().items() if "lora_" in key}, figure


def test_a_run_that_was_killed_ends_as_one_that_was_not(small_lm_folder, tmp_path):
    whole, figure = trained_weights(small_lm_folder, tmp_path, "whole", killed=False)
    again, same = trained_weights(small_lm_folder, tmp_path, "again", killed=True)
    assert whole.keys() == again.keys() and figure == same
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key
    assert any(value.abs().max() > 0 for key, value in whole.items() if "lora_B" in key)


def command(bundle, data, lm, output, *more):
    words = f"rerank fit --bundle {bundle} --data {data} --lm {lm} --output {output} --k 12 --users 8 --test-users 3"
    return main([*words.split(), "--max-tokens", "8000", "--batch-lists", "4", "--lr", "0.01", *more])


@pytest.fixture(scope="module")
def trained_folder(toy_bundle, toy_dataset, small_lm_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("fit") / "reranker"
    assert command(toy_bundle, toy_dataset.path, small_lm_folder, output) == 0
    return output


def test_the_command_writes_an_adapter_that_is_read_back_merged(trained_folder, small_lm_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    about = json.loads((trained_folder / TRAINED).read_text())
    assert about["method"] == "first" and about["adapter"] and about["learned"]["tokens"] <= 8_000
    assert about["base_fingerprint"] == fingerprint(small_lm_folder)
    assert about["after"]["num_lists"] == 3 and 0 <= about["after"]["ndcg@10_hits"] <= 1
    assert not trained_folder.with_name("reranker-run").exists()
    base = AutoModelForCausalLM.from_pretrained(small_lm_folder, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        plain = base(input_ids=ids).logits.softmax(-1)
        beside = PeftModel.from_pretrained(base, str(trained_folder))(input_ids=ids).logits.softmax(-1)
        merged = LocalLanguageModel.load(trained_folder).model(input_ids=ids).logits.softmax(-1)
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=0)
    assert (merged - plain).abs().max() > 1e-3


def test_a_model_is_not_trained_on_top_of_an_adapter(trained_folder, toy_bundle, toy_dataset, tmp_path, capsys):
    assert command(toy_bundle, toy_dataset.path, trained_folder, tmp_path / "out") == 2
    assert "is an adapter already" in capsys.readouterr().err


def test_a_whole_model_is_written_too_and_the_better_epoch_kept(toy_bundle, toy_dataset, small_lm_folder, tmp_path):
    more = ["--whole", "--loss", "full-list", "--epochs", "2", "--valid-users", "2", "--test-users", "0"]
    assert command(toy_bundle, toy_dataset.path, small_lm_folder, tmp_path / "out", *more) == 0
    about = json.loads((tmp_path / "out" / TRAINED).read_text())
    assert about["method"] == "full-list" and not about["adapter"] and about["best_epoch_figure"] < 0
    before, after = (
        LocalLanguageModel.load(folder).model.state_dict() for folder in (small_lm_folder, tmp_path / "out")
    )
    assert before.keys() == after.keys() and not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_adapters_above_weights_of_another_precision_stay_float32(
    toy_bundle, toy_dataset, small_lm_folder, tmp_path, monkeypatch
):
    beneath = []
    train = rerank_fit.train_reranker
    monkeypatch.setattr(
        rerank_fit, "train_reranker", lambda lm, *more, **kw: beneath.append(lm.model.dtype) or train(lm, *more, **kw)
    )
    more = ["--lm-dtype", "bfloat16", "--test-users", "2"]
    assert command(toy_bundle, toy_dataset.path, small_lm_folder, tmp_path / "out", *more) == 0
    assert beneath == [torch.bfloat16]
    learned = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.dtype for value in learned.values()} == {torch.float32}
    assert any(value.abs().max() > 0 for key, value in learned.items() if "lora_B" in key)
    assert json.loads((tmp_path / "out" / TRAINED).read_text())["after"]["num_lists"] == 2
    halves = named_model(str(tmp_path / "out"), ModelOptions(dtype="bfloat16"))
    assert halves.model.dtype == torch.bfloat16
    assert named_model(str(tmp_path / "out")).model.dtype == torch.float32


def test_an_adapter_of_another_model_or_kind_is_refused(trained_folder, small_lm_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(small_lm_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    with pytest.raises(InputError, match="is not the model that the adapter"):
        load_adapter(trained_folder, base=other)
    with pytest.raises(InputError, match="which is not there"):
        load_adapter(trained_folder, base=tmp_path / "gone")
    broken = tmp_path / "broken"
    shutil.copytree(trained_folder, broken)
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    with pytest.raises(InputError, match=r"holds no adapter_model.safetensors"):
        load_adapter(broken)
    (broken / "adapter_model.bin").rename(broken / "adapter_model.safetensors")
    stated = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(stated | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(InputError, match="only LORA is read"):
        load_adapter(broken)


def test_bad_input_is_one_line_and_exit_2(toy_bundle, toy_dataset, small_world, small_lm_folder, tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    (tmp_path / "lines").write_text('{"user_id": "u1"}\n')
    good = (toy_bundle, toy_dataset.path, small_lm_folder, tmp_path / "out")
    for arguments, more, words in (
        ((*good[:2], tmp_path / "none", good[3]), [], "holds no language model"),
        ((good[0], small_world.path, *good[2:]), [], "is not the dataset of bundle"),
        ((*good[:3], tmp_path / "used"), [], "is in use and holds no rerank.json"),
        (good, ["--k", "27"], "at most 26"),
        (good, ["--epochs", "0"], "--epochs must be at least 1"),
        (good, ["--lr", "-1"], "--lr must be positive"),
        (good, ["--loss", "dpo"], "--loss"),
        (good, ["--seed", "-1"], "--seed must be at least 0"),
        (good, ["--rank-weight", "-1"], "--rank-weight must be a number from 0"),
        (good, ["--separator-weight", "-0.5"], "--separator-weight must be from 0 to 1"),
        (good, ["--lists", "slates"], "has no slates"),
        (good, ["--lm-dtype", "bfloat16", "--whole"], "--lm-dtype is of a language model beneath adapters"),
        (good, ["--lm-dtype", "bfloat16", "--method", "embedding-feedback"], "--lm-dtype is of a language model"),
        (good, ["--teacher", str(tmp_path / "lines")], "line 1: expected an object with user_id and item_ids"),
        (good, ["--teacher", str(tmp_path / "lines"), "--loss", "irpo"], "irpo learns from what users chose"),
        (good, ["--teacher", str(tmp_path / "lines"), "--method", "embedding-feedback"], "learns what users chose"),
        (good, ["--max-tokens", "10"], "leaves 10 tokens an epoch"),
        (good, ["--method", "embedding-feedback"], "validation lists hold their target, and a feedback head needs 50"),
        (good, ["--resume"], "holds no run to go on with"),
    ):
        code = command(*arguments, *more)
        error = capsys.readouterr().err.strip().splitlines()
        assert code == 2 and words in error[-1] and error[-1].startswith("recsys rerank fit: "), error


def test_a_run_is_resumed_with_its_own_settings_only(tmp_path):
    RunFolder(tmp_path / "out", {"seed": 1, "max_tokens": 5}, resume=False)
    assert RunFolder(tmp_path / "out", {"seed": 1, "max_tokens": 5}, resume=True).last is None
    with pytest.raises(InputError, match="begun with another max-tokens"):
        RunFolder(tmp_path / "out", {"seed": 1, "max_tokens": 6}, resume=True)
    (tmp_path / "mine-run").mkdir()
    (tmp_path / "mine-run" / "notes").write_text("kept")
    with pytest.raises(InputError, match="in the way"):
        RunFolder(tmp_path / "mine", {}, resume=False)


def test_a_teacher_s_order_becomes_places(tmp_path):
    lists, file = made_lists(3), tmp_path / "teacher.jsonl"
    rows = [{"user_id": "0", "item_ids": ["i3", "x", "i0", "i2", "i1"]}, {"user_id": 2, "item_ids": ["i0", "i1"]}]
    file.write_text(json.dumps(rows[0]) + "\n\n")
    assert teacher_ranks(file, lists) == [(2, 4, 3, 1), None, None]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="order of user 2 leaves out candidate 'i2'"):
        teacher_ranks(file, lists)
    file.write_text(json.dumps({"user_id": 7, "item_ids": []}))
    with pytest.raises(InputError, match="holds none of the users"):
        teacher_ranks(file, lists)
    file.write_bytes(json.dumps(rows[0]).encode() + b"\n\xff\xfe\n")
    with pytest.raises(InputError, match="line 2: expected an object"):
        teacher_ranks(file, lists)


@pytest.mark.parametrize("loss", ["first", "full-list", "irpo"])
def test_parts_of_a_step_learn_what_the_whole_step_does(small_lm_folder, tmp_path, monkeypatch, loss):
    lists = made_lists(10)  # of several lengths, so that there is padding to get wrong
    requests = tuple(replace(one, query="ship " * (at % 4)) for at, one in enumerate(lists.requests))
    examples = examples_of(LocalLanguageModel.load(small_lm_folder), loss, replace(lists, requests=requests))
    longest = max(one.num_tokens for one in examples)
    losses, learned = rerank_fit_module.RerankModule._losses, {}
    for most, widths in ((1, {1}), (3 * longest, {2, 3}), (5 * longest, {5})):
        seen = []
        monkeypatch.setattr(rerank_fit_module, "_PART_TOKENS", {"cpu": most})
        monkeypatch.setattr(
            rerank_fit_module.RerankModule,
            "_losses",
            lambda self, batch, *more, seen=seen: seen.append(len(batch)) or losses(self, batch, *more),
        )
        lm, run = LocalLanguageModel.load(small_lm_folder), RunFolder(tmp_path / f"{most}", {}, resume=False)
        before = {key: value.clone() for key, value in lm.model.state_dict().items()}
        tuning = Tuning(loss=loss, lr=0.01, batch_lists=5)
        net, _ = train_reranker(lm, examples, [], tuning, run, lora_rank=0)
        assert sum(seen) == 10 and set(seen) == widths
        learned[most] = {key: value - before[key] for key, value in net.state_dict().items()}
    *parted, whole = learned.values()
    assert max(value.abs().max() for value in whole.values()) > 0.005
    for part in parted:
        for key, value in whole.items():
            torch.testing.assert_close(part[key], value, rtol=0, atol=5e-4)


def test_parts_hold_every_list_once_within_their_tokens():
    examples = [Counted(length) for length in (7, 3, 9, 3, 20, 1, 8)]
    parts = in_parts(examples, 16)
    assert sorted(id(one) for part in parts for one in part) == sorted(map(id, examples))
    assert all(len(part) == 1 or len(part) * max(one.num_tokens for one in part) <= 16 for part in parts)
    assert [[one.num_tokens for one in part] for part in parts] == [[1, 3, 3], [7, 8], [9], [20]]
