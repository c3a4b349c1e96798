"""Models and adapters by their names on the Hub: the real client, a Hub on the loopback address, and a cache."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loopback_hub import Hub

import minilora
from minilora.accounting import count
from minilora.adapters import peft
from minilora.adapters.attach import attach_lora
from minilora.cli import main
from minilora.models import pretrained, saving
from minilora.models.families import FAMILIES
from minilora.models.pretrained import load_pretrained, load_tokenizer
from minilora.models.saving import base_hash
from minilora.models.tokenizer_files import FILES_READ

client, file_download = (pytest.importorskip(f"huggingface_hub{name}") for name in ("", ".file_download"))
constants = file_download.constants  # what the client reads of the environment, as it is imported

UNREAD = dict.fromkeys(("README.md", "pytorch_model.bin", "modeling_tiny.py", "a.pt", "b.gguf"), b"not to be fetched")
STEPS = ["--steps", "4", "--batch", "2", "--length", "8", "--evaluate-every", "4"]
RUN = ["--rank", "2", *STEPS, "--checkpoint-every", "2"]
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def tiny(seed=0, vocab=256):
    return minilora.llama(minilora.Config(vocab, 1, 16, 2, max_length=32), np.random.default_rng(seed))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(model, folder):
    saving.save_pretrained(model, folder)
    return contents(folder)


def adapter_of(model, folder, **config):
    """The files of an adapter on `model` that changes what it says; `config` is written over its own."""
    rng = np.random.default_rng(7)
    attach_lora(model, ["q_proj", "v_proj"], r=2, rng=rng)
    for path, parameter in model.trainable_parameters().items():
        if path.endswith("lora_B"):
            parameter.data[:] = rng.standard_normal(parameter.data.shape)
    peft.save_adapter(model, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return contents(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that the client of this process asks, and an empty cache. org/tiny has two commits, the first tagged v1."""
    monkeypatch.chdir(tmp_path)
    for variable in THREADS:
        monkeypatch.setenv(variable, "1")  # the command sets them
    hub = Hub()
    hub.first = hub.push("org/tiny", saved(tiny(1), tmp_path / "first") | UNREAD, "v1")
    hub.second = hub.push("org/tiny", saved(tiny(2), tmp_path / "second") | UNREAD)
    with hub.serve() as hub.address:
        read = {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
        }
        for name, value in read.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refusal(capfd, *words):
    """The one line with which a command ends."""
    capfd.readouterr()
    assert main(list(words)) == 2
    out, err = capfd.readouterr()
    lines = [line for line in (row.rpartition("\r")[2] for row in err.splitlines()) if line.strip()]
    assert out == ""
    assert len(lines) == 1, lines
    return lines[0]


# ---- what is fetched ----


def test_a_name_is_the_model_of_its_branch_tag_or_commit(hub):
    first, second = (base_hash(load_pretrained(f"{commit}")) for commit in ("first", "second"))
    for source, commit, found in (
        ("org/tiny", hub.second, second),
        ("org/tiny@main", hub.second, second),
        ("org/tiny@v1", hub.first, first),
        (f"org/tiny@{hub.first}", hub.first, first),
    ):
        model = load_pretrained(source)
        assert base_hash(model) == found
        assert model.hub == ("org/tiny", commit)
    assert load_pretrained("first").hub is None


def test_the_address_of_a_model_is_its_name(hub):
    assert load_pretrained("https://huggingface.co/org/tiny").hub == ("org/tiny", hub.second)
    with pytest.raises(FileNotFoundError, match=r"^no folder or file 'https://"):
        load_pretrained("https://huggingface.co/org/tiny/blob/main/config.json")


def test_old_models_have_a_name_without_an_organisation_and_a_branch_may_have_slashes(hub):
    commit = hub.push("gpt2", contents(Path("first")), "refs/pr/1")
    assert load_pretrained("gpt2@refs/pr/1").hub == ("gpt2", commit)


GPT2 = {  # config.json of gpt2 on the Hub, but for the sizes
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 256,
    "embd_pdrop": 0.1, "eos_token_id": 256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 32, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 32, "resid_pdrop": 0.1,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip


def test_gpt2_as_it_lies_on_the_hub_continues_a_text(hub, capfd):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    splitter = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    splitter.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    splitter.decoder = tokenizers.decoders.ByteLevel()
    splitter.add_special_tokens(["<|endoftext|>"])
    model = FAMILIES["gpt2"].build(minilora.Config(257, 1, 16, 2, max_length=32), np.random.default_rng(0))
    saving.save_pretrained(model, "ours")
    tensors = pretrained.read_checkpoint(Path("ours"))
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}  # and the mask beside them
    weights = shard(tensors | {"h.0.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.float32))})
    files = {"config.json": json.dumps(GPT2).encode(), "model.safetensors": weights}
    files |= {"tokenizer.json": splitter.to_str().encode(), "tokenizer_config.json": b'{"model_max_length": 1024}'}
    commit = hub.push("gpt2", files | dict.fromkeys(["vocab.json", "merges.txt", "tf_model.h5"], b"") | UNREAD)
    assert load_pretrained("gpt2").hub == ("gpt2", commit)
    assert base_hash(load_pretrained("gpt2")) == base_hash(model)
    assert said(capfd, "generate", "--base", "gpt2", "--prompt", "To be", "--tokens", "3").startswith("To be")
    assert hub.fetched() == sorted(files)


def test_only_what_is_read_is_fetched(hub):
    load_pretrained("org/tiny")
    assert hub.fetched() == ["config.json", "model.safetensors"]


def test_a_tokenizer_fetches_no_weights(hub):
    files = (
        contents(Path("first")) | dict.fromkeys(FILES_READ, b"{}") | dict.fromkeys(["vocab.json", "merges.txt"], b"")
    )
    tokenizer = pytest.importorskip("tokenizers").Tokenizer(pytest.importorskip("tokenizers").models.BPE())
    tokenizer.add_tokens(["a"])
    hub.push("org/words", files | {"tokenizer.json": tokenizer.to_str().encode()})
    load_tokenizer("org/words")
    assert hub.fetched() == sorted([*FILES_READ, "config.json"])


def test_counting_fetches_the_config_alone(hub, capfd):
    assert main(["count", "--model", "org/tiny@v1", "--rank", "2"]) == 0
    assert main(["count", "--base", "org/tiny@v1", "--rank", "2"]) == 0
    assert hub.fetched() == ["config.json"]
    assert count("org/tiny", "full").tensors == count("second", "full").tensors


def test_of_shards_those_are_fetched_that_the_index_names(hub):
    tensors = pretrained.read_checkpoint(Path("first"))
    names = sorted(tensors)
    homes = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
    files = {file: shard({n: tensors[n] for n in names if homes[n] == file}) for file in set(homes.values())}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": homes}).encode()
    others = {"model-fp16.safetensors": b"", "onnx/model.safetensors": b"", "consolidated.safetensors": b""}
    hub.push("org/shards", files | others | UNREAD | {"config.json": contents(Path("first"))["config.json"]})
    assert base_hash(load_pretrained("org/shards")) == base_hash(load_pretrained("first"))
    assert hub.fetched() == sorted(["config.json", *files])


def shard(tensors):
    return minilora.files.tensors_to_bytes(tensors, {"format": "pt"})


@pytest.mark.parametrize("file", ["*", "../../token", "model.bin", "a/b.safetensors", "[a-z]*.safetensors"])
def test_an_index_fetches_nothing_but_shards_beside_it(hub, file):
    files = {"config.json": contents(Path("first"))["config.json"], "secret.safetensors": b""} | UNREAD
    hub.push("org/bad", files | {"model.safetensors.index.json": json.dumps({"weight_map": {"x": file}}).encode()})
    with pytest.raises(ValueError, match=r"which is not a \.safetensors file of this folder"):
        load_pretrained("org/bad")
    assert hub.fetched() == ["config.json", "model.safetensors.index.json"]


def test_a_download_that_is_cut_goes_on_where_it_ended(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    hub.cuts["model.safetensors"] = 2500
    assert base_hash(load_pretrained("org/tiny")) == base_hash(load_pretrained("second"))
    ranges = [wanted for method, path, wanted in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=2000-"]


def test_what_is_in_the_cache_is_not_fetched_again_and_a_commit_asks_nothing(hub):
    load_pretrained("org/tiny")
    hub.asked.clear()
    load_pretrained("org/tiny")
    assert hub.fetched() == []
    hub.asked.clear()
    load_pretrained(f"org/tiny@{hub.second}")
    assert hub.asked == []


# ---- names and paths ----


def test_what_exists_is_a_path_and_what_cannot_be_a_name_is_never_looked_up(hub, tmp_path):
    shutil.copytree("first", "org/tiny")
    assert load_pretrained("org/tiny").hub is None
    assert load_tokenizer("org/tiny").vocab == 256
    for source in ("./org/none", "~/none", "/none", "a/b/c", "org/none/", "none.gguf", Path("org/none"), "a b"):
        with pytest.raises(FileNotFoundError, match=r"^no folder or file '.*none|a/b/c|a b'"):
            load_pretrained(source)
    with pytest.raises(FileNotFoundError, match=r"none holds no adapter_config\.json: it is not an adapter folder"):
        peft.load_adapter(tiny(), "./none")
    assert hub.asked == []


# ---- what cannot be had ----


def test_a_name_that_is_not_there_may_be_a_folder_that_is_mistyped(hub, capfd):
    line = refusal(capfd, "generate", "--base", "runs/ntoes", "--prompt", "x")
    assert line.startswith(
        "minilora: no folder or file 'runs/ntoes', none of builtin, minilm, smollm2, and no such name on"
    )
    Path("token").write_text("hf_wrong")
    assert "and no such name on the Hub" in refusal(capfd, "generate", "--base", "none", "--prompt", "x")
    assert "and no such name on the Hub" in refusal(capfd, "info", "my--run")  # which the client refuses by itself
    line = refusal(capfd, "generate", "--adapter", "runs/ntoes", "--prompt", "x")
    assert line.startswith("minilora: no folder or file 'runs/ntoes', and no such name on the Hub")


def test_a_private_model_takes_the_token_of_the_cache(hub, capfd):
    hub.private.add("org/tiny")
    assert "the token does not open it: hf auth login" in refusal(capfd, "info", "org/tiny")
    Path("token").write_text(hub.token)
    assert load_pretrained("org/tiny").hub == ("org/tiny", hub.second)


def test_a_gated_model_says_where_its_conditions_are(hub, capfd):
    hub.gated.add("org/tiny")
    line = refusal(capfd, "generate", "--base", "org/tiny", "--prompt", "x")
    page = f"{hub.address}/org/tiny"
    assert line == f"minilora: org/tiny is gated: accept its conditions at {page}, then log in with: hf auth login"
    with pytest.raises(PermissionError):
        load_pretrained("org/tiny")


def test_a_revision_that_is_not_there_is_named(hub, capfd):
    line = refusal(capfd, "generate", "--base", "org/tiny@v9", "--prompt", "x")
    assert line == "minilora: org/tiny on the Hub has no branch, tag or commit 'v9'"
    hub.push("org/versions", contents(Path("first")), "v1")
    with pytest.raises(FileNotFoundError, match="org/versions on the Hub has no branch, tag or commit 'main'"):
        load_pretrained("org/versions")


def test_warnings_of_the_client_do_not_stand_above_the_one_line(hub):
    log, lines = client.utils.logging.get_logger("huggingface_hub"), []
    handler = logging.Handler()
    handler.emit = lines.append
    log.addHandler(handler)
    level = log.level
    with pytest.raises(FileNotFoundError):
        peft.load_adapter(tiny(), "org/tiny")
    log.removeHandler(handler)
    assert lines == []
    assert log.level == level


def test_what_is_only_there_as_a_pickle_is_refused_by_name(hub, capfd):
    config = contents(Path("first"))["config.json"]
    hub.push("org/old", {"config.json": config, "pytorch_model.bin": b"", "training_args.bin": b""})
    line = refusal(capfd, "generate", "--base", "org/old", "--prompt", "x")
    assert (
        "org/old: pytorch_model.bin is a pickle, which can run code and is never read: load it in transformers" in line
    )
    assert line.endswith("save it again, as model.safetensors, or take a revision that holds one, as org/old@refs/pr/1")
    adapter = adapter_of(load_pretrained("first"), Path("adapter"))
    hub.push("org/old-lora", {"adapter_config.json": adapter["adapter_config.json"], "adapter_model.bin": b""})
    line = refusal(capfd, "generate", "--base", "first", "--adapter", "org/old-lora", "--prompt", "x")
    assert "adapter_model.bin is a pickle, which can run code and is never read: load it in PEFT" in line
    assert not {"pytorch_model.bin", "adapter_model.bin"} & set(hub.fetched())
    Path("old").mkdir()
    Path("old/config.json").write_bytes(config)
    Path("old/pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"old.pytorch_model-00001-of-00002\.bin is a pickle.*as model\.safetensors$"):
        load_pretrained("old")


def test_a_repository_of_something_else_says_what_it_holds(hub):
    hub.push("org/lora", adapter_of(load_pretrained("first"), Path("adapter")))
    says = "org/lora on the Hub holds no config.json, only adapter_config.json, adapter_model.safetensors"
    with pytest.raises(FileNotFoundError, match=says):
        load_pretrained("org/lora")
    hub.push("org/flax", {"config.json": contents(Path("first"))["config.json"], "flax_model.msgpack": b""})
    with pytest.raises(FileNotFoundError, match=r"org/flax on the Hub holds no model\.safetensors, only .*msgpack"):
        load_pretrained("org/flax")
    with pytest.raises(FileNotFoundError, match=r"org/tiny on the Hub holds no adapter_config\.json, only"):
        peft.load_adapter(tiny(), "org/tiny")


def test_a_hub_that_is_down_and_no_answer_of_a_hub_are_a_line(hub, capfd, monkeypatch):
    hub.broken = True
    assert "the Hub cannot be reached (" in refusal(capfd, "info", "org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens
    assert "the Hub cannot be reached (" in refusal(capfd, "info", "org/tiny")


def test_without_the_package_a_line_says_what_to_install(hub, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for words in (["--base", "org/tiny"], ["--adapter", "org/lora"]):
        line = refusal(capfd, "generate", *words, "--prompt", "x")
        assert line.endswith(f"'{words[1]}'; a name on the Hub takes a package: pip install 'huggingface_hub>=1.31'")
    assert load_pretrained("first").config.vocab_size == 256


# ---- without a network ----


def test_what_was_fetched_once_is_there_without_a_network(hub, offline):
    model, _ = load_pretrained("org/tiny"), load_tokenizer("org/tiny@v1")
    offline()
    again = load_pretrained("org/tiny")
    assert (again.hub, base_hash(again)) == (model.hub, base_hash(model))
    load_tokenizer("org/tiny@v1")


@pytest.mark.parametrize("network", ["off", "down", "none"])
def test_a_cache_that_transformers_filled_is_read(hub, offline, monkeypatch, network):
    for file in ("config.json", "model.safetensors"):
        client.hf_hub_download("org/tiny", file)
    if network == "off":
        offline()
    elif network == "down":
        hub.broken = True
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load_pretrained("org/tiny").hub == ("org/tiny", hub.second)
    assert load_tokenizer("org/tiny").vocab == 256


@pytest.mark.oracle
def test_peft_finds_the_base_of_an_adapter_by_the_name_and_commit_that_it_keeps(hub, tmp_path):
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = load_pretrained("org/tiny@v1")
    adapter_of(model, Path("adapter"))
    found = theirs.AutoPeftModelForCausalLM.from_pretrained("adapter", cache_dir=str(tmp_path / "cache"))
    ids = np.arange(12)[None]
    logits = found(torch.tensor(ids)).logits.detach().numpy()
    assert np.abs(logits - model.forward(ids)[0]).max() < 1e-5 * np.abs(logits).max()
    assert "pytorch_model.bin" not in hub.fetched()


def test_a_cache_that_lacks_the_model_or_a_part_of_it_says_which_command_fetches_it(hub, offline, capfd):
    load_tokenizer("org/tiny@v1")  # which leaves the weights
    offline()
    for base in ("org/none", "org/tiny@v1"):
        line = refusal(capfd, "generate", "--base", base, "--prompt", "x")
        name, _, revision = base.partition("@")
        assert line.startswith(f"minilora: no folder or file '{name}'")
        assert (
            "and the Hub's cache lacks it or a part of it; HF_HUB_OFFLINE is set: unset it, or, with a network, run: "
            in line
        )
        assert f"run: hf download {name} " in line
        assert (f"--revision {hub.first}" in line) == bool(revision)


def test_a_cache_of_the_config_alone_is_no_model_of_no_weights(hub, capfd, monkeypatch):
    client.hf_hub_download("org/tiny", "config.json")  # which lists no files in the cache
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = refusal(capfd, "generate", "--base", "org/tiny", "--prompt", "x")
    assert "the Hub cannot be reached" in line
    assert f"run: hf download org/tiny --revision {hub.second} --include" in line


@pytest.mark.slow
def test_the_command_that_is_named_fetches_what_is_lacking(hub, offline, capfd, tmp_path):
    offline()
    words = shlex.split(refusal(capfd, "generate", "--base", "org/tiny", "--prompt", "x").partition("run: ")[2])
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
                        "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # fmt: skip
    hf = Path(sys.executable).with_name("hf")
    subprocess.run([hf if hf.exists() else "hf", *words[1:]], env=env, check=True, capture_output=True)
    assert load_pretrained("org/tiny").hub == ("org/tiny", hub.second)


# ---- adapters, and the commit that is kept ----


def test_an_adapter_goes_by_its_name(hub):
    first = adapter_of(load_pretrained("first"), Path("adapter"))
    hub.push("org/lora", first | {"adapter_model.bin": b"", "training_args.bin": b"", "tokenizer.json": b""})
    ids, model, other = np.arange(8)[None], load_pretrained("first"), load_pretrained("first")
    assert peft.load_adapter(model, "org/lora") == peft.load_adapter(other, "adapter") == ""
    assert np.array_equal(model.forward(ids)[0], other.forward(ids)[0])
    adapters = peft.Adapters(load_pretrained("first"))
    adapters.load("lora", "org/lora@main")
    assert hub.fetched() == ["adapter_config.json", "adapter_model.safetensors"]


def test_an_adapter_of_a_base_on_the_hub_says_its_name_and_commit(hub):
    model = load_pretrained("org/tiny@v1")
    adapter_of(model, Path("adapter"))
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", hub.first)
    adapter_of(load_pretrained("first"), Path("local"))
    config = json.loads(Path("local/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert "revision" not in config


GENERATE = ["generate", "--prompt", "def ", "--tokens", "8"]


def said(capfd, *words):
    capfd.readouterr()
    assert main([*map(str, words)]) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("revision", ["commit", "branch"])
def test_generate_and_merge_take_the_base_that_the_adapter_names(hub, capfd, revision):
    """As PEFT writes it, in adapter_config.json alone."""
    model = load_pretrained("first")
    named = {"base_model_name_or_path": "org/tiny", "revision": hub.first if revision == "commit" else "v1"}
    hub.push("org/lora", adapter_of(model, Path("adapter"), **named))
    right = said(capfd, *GENERATE, "--base", "first", "--adapter", "adapter")
    assert said(capfd, *GENERATE, "--adapter", "org/lora") == right
    assert said(capfd, *GENERATE, "--base", "org/tiny", "--adapter", "org/lora") == right
    assert said(capfd, "merge", "--adapter", "org/lora", "--out", "merged")
    assert said(capfd, *GENERATE, "--base", "merged") == right
    line = refusal(capfd, *GENERATE, "--base", "org/tiny@main", "--adapter", "adapter")  # said outright
    assert "was made for another base" in line
    assert base_hash(load_pretrained("org/tiny")) != base_hash(load_pretrained("org/tiny@v1"))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"base_model_name_or_path": "/home/someone/base"}, "no folder or file '/home/someone/base'"),
        ({"base_model_name_or_path": "org/none", "revision": "v1"}, "no folder or file 'org/none', none of builtin"),
        ({"base_model_name_or_path": "org/tiny", "revision": "v9"}, "org/tiny on the Hub has no branch, tag or commit"),
        ({"base_model_name_or_path": "org/tiny", "revision": "../../v1"}, "no folder or file 'org/tiny@../../v1'"),
    ],
)
def test_a_base_that_an_adapter_names_and_that_is_not_there_is_named(hub, capfd, named, says):
    adapter_of(load_pretrained("first"), Path("adapter"), **named)
    Path("adapter/settings.json").write_text("{}")  # of another program
    assert says in refusal(capfd, *GENERATE, "--adapter", "adapter")


def test_a_run_keeps_its_commit_and_all_that_follows_takes_it(hub, capfd):
    Path("words.txt").write_bytes(b"to be or not to be " * 40)
    finetune = ["finetune", "--base", "org/tiny", "--data", "words.txt", "--out", "run", *RUN]
    assert "generate --prompt 'The ' --adapter run" in said(capfd, *finetune)
    settings = json.loads(Path("run/settings.json").read_text())
    config = json.loads(Path("run/adapter_config.json").read_text())
    assert (settings["base"], settings["revision"]) == ("org/tiny", hub.second)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", hub.second)
    before = said(capfd, *GENERATE, "--adapter", "run")
    third = hub.push("org/tiny", saved(tiny(3), Path("third")))  # main has moved on
    assert load_pretrained("org/tiny").hub == ("org/tiny", third)
    assert said(capfd, *GENERATE, "--adapter", "run") == before
    assert said(capfd, *GENERATE, "--adapter", "run", "--base", "org/tiny") == before
    assert said(capfd, *finetune, "--resume")
    assert "was made for another base" in refusal(capfd, *GENERATE, "--adapter", "run", "--base", "org/tiny@main")
    assert "the base is not the one" in refusal(capfd, *finetune, "--resume", "--base", "org/tiny@main")
    assert said(capfd, "rank", "run", "--base", "org/tiny")


def test_a_classifier_keeps_its_commit_and_predict_takes_it(hub, capfd):
    Path("rows.csv").write_text("text,label\n" + "good,yes\ndull,no\n" * 10)
    words = ["--epochs", "1", "--batch", "4", "--length", "8", "--rank", "2"]
    said(capfd, "finetune", "--task", "classify", "--base", "org/tiny", "--data", "rows.csv", "--out", "run", *words)
    predict = ["predict", "--adapter", "run", "--data", "rows.csv"]
    before = said(capfd, *predict)
    hub.push("org/tiny", saved(tiny(3), Path("third")))
    assert said(capfd, *predict) == before == said(capfd, *predict, "--base", "org/tiny")
    Path("run/settings.json").unlink()
    assert said(capfd, *predict).count("\n") == 20  # by what the adapter's own config says
    hub.push("org/yes-no", contents(Path("run")))
    assert said(capfd, "predict", "--adapter", "org/yes-no", "--data", "rows.csv").count("\n") == 20


@pytest.mark.slow
def test_all_cells_of_a_sweep_are_of_one_commit(hub, capfd):
    pytest.importorskip("joblib")
    Path("words.txt").write_bytes(b"to be or not to be " * 40)
    words = [
        "sweep", "--base", "org/tiny", "--data", "words.txt", "--out", "sweep", "--jobs", "1", "--seeds", "1", *STEPS,
    ]  # fmt: skip
    said(capfd, *words, "--ranks", "1")
    hub.push("org/tiny", saved(tiny(3), Path("third")))
    said(capfd, *words, "--ranks", "1,2", "--resume")
    cells = [json.loads(path.read_text()) for path in Path("sweep").glob("rank-*/seed-0/settings.json")]
    assert [(cell["base"], cell["revision"]) for cell in cells] == [("org/tiny", hub.second)] * 2


def test_a_folder_that_a_run_was_on_is_never_looked_up_as_a_name(hub, capfd):
    shutil.copytree("first", "runs/base")
    Path("words.txt").write_bytes(b"to be or not to be " * 40)
    said(capfd, "finetune", "--base", "runs/base", "--data", "words.txt", "--out", "run", *RUN)
    settings = json.loads(Path("run/settings.json").read_text())
    assert settings["base"] == "runs/base"
    assert "revision" not in settings
    assert said(capfd, *GENERATE, "--adapter", "run") == said(
        capfd, *GENERATE, "--adapter", "run", "--base", "runs/base"
    )
    shutil.rmtree("runs")
    assert "no folder or file 'runs/base': choose from builtin" in refusal(capfd, *GENERATE, "--adapter", "run")
    assert hub.asked == []


def test_what_a_repository_is_info_says_and_checkpoints_are_compared_by_name(hub, capfd):
    hub.push("org/lora", adapter_of(load_pretrained("first"), Path("adapter")))
    assert "model        llama" in said(capfd, "info", "org/tiny")
    assert "adapter      LORA, r = 2" in said(capfd, "info", "org/lora")
    assert said(capfd, "rank", "org/tiny@v1", "org/tiny", "--rank", "2", "--out", "extracted")
    config = json.loads(Path("extracted/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", hub.first)
    assert said(
        capfd, "rank", "org/lora", "--rank", "1", "--out", "small", "--compare", "org/lora", "--base", "org/tiny@v1"
    )


@pytest.mark.slow
def test_the_command_line_fetches_and_says_nothing_more(hub, tmp_path):
    """In a process of its own, as people start it, with the variables that the client reads."""
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "minilora", "generate", "--base", "org/tiny", "--prompt", "x", "--tokens", "2"]
    for offline in "01":
        done = subprocess.run(
            command, env=env | {"HF_HUB_OFFLINE": offline}, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("x")
        assert not re.sub(r"\r[^\n]*", "", done.stderr).strip()
