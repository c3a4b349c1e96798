"""A classifier, by `finetune` or by PEFT, merged: `transformers` loads it, with the same logits and names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilora.cli import main
from minilora.jobs.prediction import Classifier

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
peft, tokenizers = pytest.importorskip("peft"), pytest.importorskip("tokenizers")

DECODERS, ENCODERS = ("gpt2", "llama", "mistral", "qwen2"), ("bert", "roberta")
TEXTS = ["a bad film", "good", "some longer text about a film that was good"]
NAMES = ["bad", "fair", "good"]


def make_base(folder: Path, family: str, pad: bool = False) -> Path:
    """A tiny model without a classifier, and a tokenizer over bytes that ends every text with </s>."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({x: i for i, x in enumerate(ALPHABET)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = ("</s>", made.token_to_id("</s>"))
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[START, end])
    named = {"bos_token": "<s>", "eos_token": "</s>", **({"pad_token": "<pad>"} if pad else {})}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    sizes: dict[str, Any] = {"vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 80}
    if family == "gpt2":
        sizes = {"vocab_size": ROWS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 80}
    if family in ("mistral", "qwen2", "llama"):
        sizes["num_key_value_heads"] = 1
    if family in DECODERS:
        sizes |= {"bos_token_id": START[1], "eos_token_id": end[1], "pad_token_id": None}
    config = transformers.AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM if family in DECODERS else transformers.AutoModel
    auto.from_config(config).save_pretrained(folder)
    return folder


SPECIAL = ["<s>", "<pad>", "</s>"]
ALPHABET = [*SPECIAL, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
START = ("<s>", 0)
ROWS = len(ALPHABET) + 1  # of the embedding: transformers adds <|endoftext|> to any tokenizer of a Qwen2


def ids_of(folder: Path, pad: int) -> Any:
    """The texts as a batch, padded with `pad`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer(TEXTS, padding=True, return_tensors="pt")


def logits(model: Any, batch: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()


def peft_adapter(base: Path, folder: Path, auto: Any, task: str | None, **options: Any) -> Any:
    """An adapter of PEFT with a classifier, saved; its model."""
    theirs = auto.from_pretrained(base, num_labels=3, pad_token_id=1)
    targets = "all-linear" if task == "SEQ_CLS" else ["query", "value"]  # PEFT fails on all linear layers of the other
    how = peft.LoraConfig(
        **{"task_type": task, "target_modules": targets, "r": 2, "init_lora_weights": False, **options}
    )
    adapted = peft.get_peft_model(theirs, how)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("pad", [True, False], ids=["with a padding token", "without one"])
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_what_finetune_made_is_merged_to_a_classifier_of_transformers(family, pad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = make_base(tmp_path / "base", family, pad)
    rows = [f"{'xyz'[i % 3]}{'ab' * (i % 4)},{NAMES[i % 3]}" for i in range(24)]
    Path("rows.csv").write_text("\n".join(["text,label", *rows]))
    words = ["finetune", "--task", "classify", "--base", "base", "--data", "rows.csv", "--length", "60", "--lr", "0.05"]
    assert main([*words, "--epochs", "1", "--batch", "4", "--out", "out"]) == 0
    assert main(["merge", "--base", "base", "--adapter", "out", "--out", "merged"]) == 0
    merged = transformers.AutoModelForSequenceClassification.from_pretrained("merged")
    assert merged.config.id2label == dict(enumerate(NAMES))
    assert merged.config.label2id == {name: i for i, name in enumerate(NAMES)}
    found = logits(merged, ids_of(base, merged.config.pad_token_id))
    p = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    assert np.allclose(p, Classifier("out")(TEXTS), atol=1e-6)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_what_peft_made_is_merged_to_a_classifier_of_transformers(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, auto = make_base(tmp_path / "base", family, pad=True), transformers.AutoModelForSequenceClassification
    theirs = peft_adapter(base, tmp_path / "adapter", auto, "SEQ_CLS")
    assert main(["merge", "--base", "base", "--adapter", "adapter", "--out", "merged"]) == 0
    batch = ids_of(base, 1)
    assert np.allclose(logits(auto.from_pretrained("merged"), batch), logits(theirs, batch), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_classifier_is_merged_as_one_also_where_peft_was_not_told_the_task(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, auto = make_base(tmp_path / "base", family, pad=True), transformers.AutoModelForSequenceClassification
    names = {"llama": {"target_modules": ["q_proj"], "modules_to_save": ["score"]}}
    names["bert"] = {"target_modules": ["query"], "modules_to_save": ["classifier"]}
    theirs = peft_adapter(base, tmp_path / "adapter", auto, None, **names[family])
    assert main(["merge", "--base", "base", "--adapter", "adapter", "--out", "merged"]) == 0
    batch = ids_of(base, 1)
    assert np.allclose(logits(auto.from_pretrained("merged"), batch), logits(theirs, batch), atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_classifier_of_tokens_is_merged_to_one_of_transformers(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, auto = make_base(tmp_path / "base", family, pad=True), transformers.AutoModelForTokenClassification
    theirs = peft_adapter(base, tmp_path / "adapter", auto, "TOKEN_CLS")
    assert main(["merge", "--base", "base", "--adapter", "adapter", "--out", "merged"]) == 0
    batch = ids_of(base, 1)
    found, expected = (logits(model, batch) for model in (auto.from_pretrained("merged"), theirs))
    real = batch["attention_mask"].numpy().astype(bool)
    assert np.allclose(found[real], expected[real], atol=1e-5)
    architectures = json.loads(Path("merged", "config.json").read_text())["architectures"]
    assert architectures == [type(theirs.base_model.model).__name__]
