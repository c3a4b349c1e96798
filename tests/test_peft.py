"""Adapters in PEFT's format, both ways: every feature of the config, in every family, against PEFT itself."""

import json
import warnings
from typing import Any

import numpy as np
import pytest

import minilora
from minilora import peft
from minilora.checkpoint import load_tensors, save_tensors
from minilora.families import FAMILIES
from minilora.lora import Adapter
from minilora.transformer import Config, Context, Transformer

V, T = 31, 7
IDS = np.random.default_rng(9).integers(2, V, (2, T))
PADDING = np.arange(T) < np.array([[T], [4]])
ATTENTION = {"gpt2": ["qkv_proj"], "llama": ["q_proj", "v_proj"]}
THEIRS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "bert": ["query", "value"], "roberta": ["query", "value"]}
TABLE = {"gpt2": "wte", "llama": "embed_tokens", "bert": "word_embeddings", "roberta": "word_embeddings"}


def base(
    family: str = "llama", head: str = "lm", seed: int = 1, tied: bool = True, dtype: str = "float64"
) -> Transformer:
    """A small model no parameter of which is 0 or 1."""
    rng = np.random.default_rng(seed)
    special: dict[str, Any] = {
        "llama": {"kv_heads": 1},
        "bert": {"activation": "gelu"},
        "roberta": {"offset": 2, "segments": 1, "activation": "gelu"},
        "gpt2": {},
    }[family]
    shape = {"vocab": V, "layers": 2, "width": 12, "heads": 2, "hidden": 20, "context": 16, "labels": 3, **special}
    model = FAMILIES[family](Config(**shape, head=head, tied=tied, dtype=dtype), rng)
    for parameter in model.named_parameters().values():
        parameter.data = (parameter.data + 0.2 * rng.standard_normal(parameter.data.shape)).astype(dtype)
    return model


def trained(model: Transformer, seed: int = 3) -> Transformer:
    """With other numbers in all that learns."""
    rng = np.random.default_rng(seed)
    for parameter in model.trainable_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape).astype(parameter.data.dtype)
    return model


def adapted(family: str, head: str, targets: Any, seed: int = 1, tied: bool = True, **words: Any) -> Transformer:
    model = base(family, head, seed, tied)
    minilora.attach_lora(model, targets, rng=np.random.default_rng(2), **{"r": 3, "alpha": 5, **words})
    return trained(model)


def logits(model: Transformer) -> np.ndarray:
    return model.forward(IDS, Context(padding=PADDING))[0]


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def tensors(folder: Any) -> dict[str, np.ndarray]:
    return load_tensors(folder / peft.WEIGHTS)[0]


def config(folder: Any) -> dict[str, Any]:
    return json.loads((folder / peft.CONFIG).read_text())


def change(folder: Any, to_tensors: Any = dict, **to_config: Any) -> None:
    old, metadata = load_tensors(folder / peft.WEIGHTS)
    save_tensors(folder / peft.WEIGHTS, to_tensors(old), metadata)
    (folder / peft.CONFIG).write_text(json.dumps(config(folder) | to_config))


def snapshot(model: Transformer) -> Any:
    parameters = {name: (id(p), p.trainable, p.data.tobytes()) for name, p in model.named_parameters().items()}
    return [id(module) for _, module in model.named_modules()], parameters


def attention(family: str) -> list[str]:
    return ATTENTION.get(family, ["q_proj", "v_proj"])


# ---- ours -> file -> ours ----

OURS: dict[str, dict[str, Any]] = {
    "attention": {},
    "all-linear, rsLoRA": {"targets": "all-linear", "rslora": True},
    "ranks": {"targets": {"block_1.mlp.up_proj": 2, "down_proj": 4}},
    "one of two layers of one name": {"targets": ["o_proj"]},
    "the embedding": {"targets": ["embed", "down_proj"]},
    "norms whole": {"train": ["norm"]},
    "every bias": {"train": ["bias"]},
    "positions whole": {"train": ["position"]},
    "the embedding and norms": {"targets": ["embed"], "train": ["norm"]},
    "the head": {"targets": ["lm_head", "up_proj"]},
}


def cases() -> list[Any]:
    found = []
    for family in FAMILIES:
        for head in ("lm", "classify", "none"):
            for name, words in OURS.items():
                lacks_bias = family == "llama" and name in ("every bias", "positions whole")
                if not lacks_bias and not (name == "the head" and head != "lm"):
                    found.append(pytest.param(family, head, words, id=f"{family}, {head}, {name}"))
    return found


@pytest.mark.parametrize(("family", "head", "words"), cases())
def test_an_adapter_comes_back_to_the_bit_with_what_learns_and_saves_to_the_same_bytes(tmp_path, family, head, words):
    model = adapted(family, head, **{"targets": attention(family), **words})
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family, head)
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert np.array_equal(logits(loaded), logits(model))
    learns = (
        {name for name in loaded.named_parameters() if name.startswith("classifier")} if head == "classify" else set()
    )
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters()) | learns
    peft.save_adapter(loaded, tmp_path / "b")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ---- PEFT ----

pinned = pytest.mark.filterwarnings("ignore")


def their_base(model: Transformer, folder: Any) -> Any:
    """The model as `transformers` loads it from our folder, computing in float64."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    if not (folder / "config.json").exists():
        minilora.save_pretrained(model, folder)
    masked = model.family in ("bert", "roberta")
    auto = {
        "lm": transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM,
        "classify": transformers.AutoModelForSequenceClassification,
        "none": transformers.AutoModel,
    }[model.config.head]
    words = {"num_labels": 3} if model.config.head == "classify" else {}
    theirs = auto.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager", **words)
    theirs.config.pad_token_id = 0 if model.family != "roberta" else 1
    return theirs.eval()


def their_logits(model: Any, head: str) -> np.ndarray:
    torch = pytest.importorskip("torch")
    ids = IDS * PADDING + (0 if model.config.pad_token_id == 0 else 1) * ~PADDING
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(PADDING).long())
    y = out.last_hidden_state if head == "none" else out.logits
    return y.double().numpy()


def agree(ours: Transformer, theirs: Any) -> bool:
    """Where there is no padding; a float64 model of theirs computes RMS norms and rotations of a llama in float32."""
    one, two = logits(ours), their_logits(theirs, ours.config.head)
    if one.ndim == 3:
        one, two = one[PADDING], two[PADDING]
    return close(one, two, 1e-5 if ours.family == "llama" else 1e-12)


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize(("family", "head", "words"), cases())
def test_peft_loads_what_we_save_with_the_same_logits_and_writes_the_same_tensors(tmp_path, family, head, words):
    hf = pytest.importorskip("peft")
    model = adapted(family, head, **{"targets": attention(family), **words})
    peft.save_adapter(model, tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = hf.PeftModel.from_pretrained(their_base(base(family, head), tmp_path / "m"), tmp_path / "a")
    assert not [w for w in caught if "missing adapter keys" in str(w.message)]
    assert agree(model, theirs)
    theirs.save_pretrained(tmp_path / "back")
    ours, back = tensors(tmp_path / "a"), tensors(tmp_path / "back")
    back = {
        name: x for name, x in back.items() if not any(s in name for s in (".original_module.", "modules_to_save."))
    }
    back = {name: x for name, x in back.items() if "pooler" not in name or head != "none"}
    assert set(ours) == set(back)
    assert all(np.array_equal(ours[name], back[name]) for name in ours)


CONFIGS: dict[str, Any] = {
    "plain": lambda f: {},
    "a regex": lambda f: {"target_modules": rf".*\.1\..*\.({'|'.join(THEIRS[f])})"},
    "all-linear": lambda f: {"target_modules": "all-linear"},
    "embedding": lambda f: {"target_modules": [TABLE[f], *THEIRS[f]], "use_rslora": True},
    "bias all": lambda f: {"bias": "all"},
    "bias lora_only": lambda f: {"bias": "lora_only"},
    "layers_to_transform": lambda f: {"layers_to_transform": [1], "layers_pattern": "h" if f == "gpt2" else None},
    "one layer": lambda f: {"layers_to_transform": 0},
    "excluded": lambda f: {"exclude_modules": [THEIRS[f][0]] if len(THEIRS[f]) > 1 else r".*\.0\..*"},
    "patterns": lambda f: {"rank_pattern": {THEIRS[f][0]: 5}, "alpha_pattern": {rf"1\..*{THEIRS[f][-1]}": 1.5}},
    "a norm whole": lambda f: {"modules_to_save": [{"gpt2": "ln_f", "llama": "norm"}.get(f, "LayerNorm")]},
    "the embedding whole": lambda f: {"modules_to_save": [TABLE[f]]},
}


def their_adapter(folder: Any, family: str, head: str, words: dict[str, Any]) -> Any:
    """A PEFT model with other numbers than 0 in all that learns, and its files in folder/theirs."""
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    task = {"classify": "SEQ_CLS", "none": "FEATURE_EXTRACTION"}.get(head, "CAUSAL_LM" if family in ATTENTION else None)
    words = {"r": 3, "lora_alpha": 7, "target_modules": THEIRS[family], "task_type": task, **words}
    theirs = hf.get_peft_model(their_base(base(family, head), folder / "m"), hf.LoraConfig(**words)).double().eval()
    generator = torch.Generator().manual_seed(0)
    seen = set()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad and parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    theirs.save_pretrained(folder / "theirs")
    return theirs


NO_NUMBER = ("gpt2", "one layer"), ("llama", "one layer"), ("llama", "layers_to_transform")


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head", ["lm", "classify", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_wrote_loads_with_the_same_logits_and_is_written_back_to_the_bit(tmp_path, family, head, name):
    if family == "llama" and name.startswith("bias"):
        pytest.skip("a llama has no bias")
    if head == "none" and (family, name) in NO_NUMBER:
        pytest.skip("PEFT finds the number of a layer only after a dot, and adapts nothing")
    theirs = their_adapter(tmp_path, family, head, CONFIGS[name](family))
    model = base(family, head)
    assert "does not say which base" in peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)
    peft.save_adapter(model, tmp_path / "ours")
    written, read = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    copies = ".original_module.", ".modules_to_save.", "model.pooler."
    read = {name: x for name, x in read.items() if not any(copy in name for copy in copies)}
    assert set(written) == set(read)
    assert all(np.array_equal(written[name], read[name]) for name in read)
    one, two = config(tmp_path / "ours"), config(tmp_path / "theirs")
    for key in (
        "peft_type",
        "task_type",
        "bias",
        "use_rslora",
        "lora_dropout",
        "fan_in_fan_out",
        "ensure_weight_tying",
    ):
        assert one[key] == two[key], key
    again = base(family, head)
    peft.load_adapter(again, tmp_path / "ours")
    ranks = [{path: (m.r, m.alpha) for path, m in x.named_modules() if isinstance(m, Adapter)} for x in (model, again)]
    assert ranks[0] == ranks[1]
    assert np.array_equal(logits(again), logits(model))
