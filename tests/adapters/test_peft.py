"""Adapters in PEFT's format, both ways: every feature of the config, in every family, against PEFT itself."""

import copy
import functools
import json
import re
import warnings
from typing import Any

import examples
import numpy as np
import pytest
from damage import bounded, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ONE_TEXT, close
from peft_models import IDS, PADDING, V, adapted, base, logits, trained

import minilora
from minilora.adapters import peft
from minilora.adapters.attach import adaptable, attach
from minilora.adapters.base import Adapter
from minilora.adapters.peft.config import PROMPTS, REGULAR, check_config, check_pattern, classes_of, known_keys
from minilora.adapters.peft.matching import WHOLE
from minilora.adapters.peft.reading import read_modules
from minilora.adapters.registry import variants
from minilora.files import load_tensors, save_tensors
from minilora.jobs.changes import adapter_changes
from minilora.models.config import LABELLED, Config
from minilora.models.families import FAMILIES
from minilora.models.names import hf_name, hub_name
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Inputs, Linear
from minilora.nn.optim import SGD, AdamW

TESTED = tuple(family for family in ONE_TEXT if family not in ("mistral", "qwen2"))  # whose names are Llama's
PEFT_HEADS = [(family, head) for family in TESTED for head in FAMILIES[family].classes]
DECODERS = tuple(family for family in TESTED if "tokens" not in FAMILIES[family].classes)
IN_FLOAT64 = "gpt2", "bert", "roberta", "distilbert"  # transformers takes RMS norms and rotary angles in float32
PARAMETERS = {
    (family, head): [*FAMILIES[family].build(Config(8, 1, 4, 1, head=head), None).state_dict()]
    for family, head in PEFT_HEADS
}
UNBIASED = tuple(family for family in TESTED if not any(path.endswith("bias") for path in PARAMETERS[family, "none"]))
FUSED_MLP = tuple(family for family in TESTED if "block_0.mlp.gate_up_proj.weight" in PARAMETERS[family, "none"])


def attention(family: str) -> list[str]:
    fused = "block_0.attention.qkv_proj.weight" in PARAMETERS[family, "none"]
    return ["qkv_proj"] if fused else ["q_proj", "v_proj"]


def their_name(family: str, path: str) -> str:
    return hub_name(family, path).rpartition(".")[2]


THEIRS = {f: [their_name(f, f"block_0.attention.{name}") for name in attention(f)] for f in TESTED}
NORM = {family: their_name(family, "block_0.norm_1") for family in TESTED} | {"llama": "norm", "qwen3": "norm"}
TABLE = {family: their_name(family, "embed.token") for family in TESTED}


def tensors(folder: Any) -> dict[str, np.ndarray]:
    return load_tensors(folder / peft.WEIGHTS)[0]


def config(folder: Any) -> dict[str, Any]:
    return json.loads((folder / peft.CONFIG).read_text())


def damaged(folder: Any, to_tensors: Any = dict, **to_config: Any) -> None:
    old, metadata = load_tensors(folder / peft.WEIGHTS)
    save_tensors(folder / peft.WEIGHTS, to_tensors(old), metadata)
    (folder / peft.CONFIG).write_text(json.dumps(config(folder) | to_config))


def snapshot(model: Transformer) -> Any:
    parameters = {name: (id(p), p.trainable, p.data.tobytes()) for name, p in model.named_parameters().items()}
    return [id(module) for _, module in model.named_modules()], parameters


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
    for family in TESTED:
        for head in FAMILIES[family].classes:
            for name, words in OURS.items():
                lacks = {"every bias": "bias", "positions whole": "position"}.get(name, "")
                lacks_bias = lacks and not any(lacks in path for path in PARAMETERS[family, head])
                if not lacks_bias and not (name == "the head" and head != "lm"):
                    words = {**words, "targets": whole_layers(family, words.get("targets", attention(family)))}
                    found.append(pytest.param(family, head, words, id=f"{family}, {head}, {name}"))
    return found


def whole_layers(family: str, targets: Any) -> Any:
    """The targets, with the fused layer in the place of up_proj where that is a part: PEFT's file knows no parts."""
    if family not in FUSED_MLP or isinstance(targets, str):
        return targets
    named = {re.sub(r"\bup_proj", "gate_up_proj", target): target for target in targets}
    return {name: targets[target] for name, target in named.items()} if isinstance(targets, dict) else list(named)


@pytest.mark.each_value
@pytest.mark.parametrize(("family", "head", "words"), cases())
def test_an_adapter_comes_back_to_the_bit_with_what_learns_and_saves_to_the_same_bytes(tmp_path, family, head, words):
    model = adapted(family, head, **words)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family, head)
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert np.array_equal(logits(loaded), logits(model))
    learns = (
        {name for name in loaded.named_parameters() if name.startswith("classifier")} if head in LABELLED else set()
    )
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters()) | learns
    peft.save_adapter(loaded, tmp_path / "b")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ---- PEFT ----

pinned = pytest.mark.filterwarnings("ignore")


def their_base(folder: Any, family: str, head: str = "lm") -> Any:
    """A copy of what `transformers` loads of our base, which is saved and loaded once, beside the test's folder."""
    return copy.deepcopy(their_base_in(folder.parent / f"{family}-{head}", family, head))


@functools.cache
def their_base_in(folder: Any, family: str, head: str) -> Any:
    return their_model(base(family, head), folder)


def their_model(model: Transformer, folder: Any) -> Any:
    """The model as `transformers` loads it from our folder, computing in float64."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    if not (folder / "config.json").exists():
        minilora.save_pretrained(model, folder)
    masked = model.family not in DECODERS
    auto = {
        "lm": transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM,
        "classify": transformers.AutoModelForSequenceClassification,
        "tokens": transformers.AutoModelForTokenClassification,
        "none": transformers.AutoModel,
    }[model.config.head]
    words = {"num_labels": 3} if model.config.head in LABELLED else {}
    theirs = auto.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa", **words)
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
    return close(one, two, 1e-5 if ours.family not in IN_FLOAT64 else 1e-12)


@pytest.mark.each_value
@pytest.mark.oracle
@pinned
@pytest.mark.parametrize(("family", "head", "words"), cases())
def test_peft_loads_what_we_save_with_the_same_logits_and_writes_the_same_tensors(tmp_path, family, head, words):
    hf = pytest.importorskip("peft")
    model = adapted(family, head, **words)
    peft.save_adapter(model, tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = hf.PeftModel.from_pretrained(their_base(tmp_path, family, head), tmp_path / "a")
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
    "a norm whole": lambda f: {"modules_to_save": ["ln_f" if f == "gpt2" else NORM[f]]},
    "the embedding whole": lambda f: {"modules_to_save": [TABLE[f]]},
}
MASKED_HEAD = {"bert": "cls", "roberta": "lm_head"}


def their_adapter(folder: Any, family: str, head: str, words: dict[str, Any], make: Any = None) -> Any:
    """A PEFT model with other numbers than 0 in all that learns, and its files in folder/theirs; of LoRA, or of another
    config's class."""
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    tasks = {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS", "none": "FEATURE_EXTRACTION"}
    task = tasks.get(head, "CAUSAL_LM" if family in DECODERS else None)
    words = {"task_type": task, **words}
    if make is None:
        make, words = hf.LoraConfig, {"r": 3, "lora_alpha": 7, "target_modules": THEIRS[family], **words}
    theirs = hf.get_peft_model(their_base(folder, family, head), make(**words)).double().eval()
    generator = torch.Generator().manual_seed(0)
    seen = set()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".ranknum." in name:
                continue  # of AdaLoRA: PEFT trains it where the base is not in float32, and no file holds it
            if parameter.requires_grad and parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    theirs.save_pretrained(folder / "theirs")
    return theirs


NO_NUMBER = (
    ("gpt2", "one layer"),
    *(
        (f, name)
        for f in TESTED
        if ".layers." in hub_name(f, "block_0.norm_1")
        for name in ("one layer", "layers_to_transform")
    ),
)


@pytest.mark.each_value
@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("family", "head"), PEFT_HEADS)
def test_what_peft_wrote_loads_with_the_same_logits_and_is_written_back_to_the_bit(tmp_path, family, head, name):
    if family in UNBIASED and name.startswith("bias"):
        pytest.skip(f"a {family} has no bias")
    if head == "none" and (family, name) in NO_NUMBER:
        pytest.skip("PEFT finds the number of a layer only after a dot, and adapts nothing")
    if (head, name) == ("tokens", "all-linear"):
        pytest.skip("PEFT leaves a classifier out of its all-linear for SEQ_CLS alone, then refuses to save it as well")
    if (family, head, name) == ("distilbert", "classify", "all-linear"):
        pytest.skip("PEFT adapts pre_classifier, and saves it whole as its name ends in classifier: it refuses itself")
    theirs = their_adapter(tmp_path, family, head, CONFIGS[name](family))
    model = base(family, head)
    minilora.save_pretrained(model, tmp_path / "m")
    assert "does not say which base" in peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)
    peft.save_adapter(model, tmp_path / "ours")
    for folder in ("theirs", "ours"):  # `minilora rank` measures what loads
        measured = adapter_changes(tmp_path / folder, tmp_path / "m").layers
        deltas = {hf_name(model, path): m.delta() for path, m in model.named_modules() if isinstance(m, Adapter)}
        assert measured.keys() - {"pooler.dense"} == deltas.keys()  # an encoder without a head has no pooler here
        for name, delta in deltas.items():
            np.testing.assert_allclose(measured[name].after - measured[name].before, delta, rtol=1e-9, atol=1e-12)
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


# ---- every variant, both ways ----

LAYERS = {  # ours, and theirs; the last is a layer of the MLP
    "llama": (["k_proj", "v_proj", "up_proj"], ["k_proj", "v_proj", "up_proj"]),
    "gpt2": (["qkv_proj", "up_proj"], ["c_attn", "c_fc"]),
    "bert": (["k_proj", "v_proj", "up_proj"], ["key", "value", "intermediate.dense"]),
}
HEADS = {"llama": "lm", "gpt2": "lm", "bert": "classify"}
FLAGS = [(name, option.name) for name, classes in variants().items() for option in classes[0].options
         if isinstance(option.default, bool) and option.key]  # fmt: skip


def options_for(variant: str, flag: str, mlp: str, keys: bool) -> dict[str, Any]:
    """A rank of 3, an α of 6 (LoHa in PEFT rounds α/r to float32), the steps that PEFT asks for where it cuts, and one
    flag the other way; by our names, or by the keys of PEFT's config."""
    classes, numbers = variants()[variant], {"r": 3, "alpha": 6, "total_step": 9}
    found = {o.key if keys else o.name: numbers[o.name] for o in classes[0].options if o.name in numbers}
    found |= {o.key if keys else o.name: not o.default for o in classes[0].options if o.name == flag}
    return found | {cls.modules_key: [mlp] for cls in classes if cls.modules_key}


def of_variant(family: str, variant: str, flag: str) -> Transformer:
    model, targets = base(family, HEADS[family]), LAYERS[family][0]
    attach(model, variant, targets, rng=2, **options_for(variant, flag, targets[-1], keys=False))
    return trained(model)


def their_config(variant: str) -> Any:
    """PEFT's class for the config of a variant; the test is skipped where PEFT has none."""
    mapping, kind = pytest.importorskip("peft.mapping"), variants()[variant][0].peft_type
    classes = {name.value: make for name, make in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in classes:
        pytest.skip(f"PEFT has no {kind}")
    return classes[kind]


def on_all(variant: str, family: str) -> bool:
    """Can the variant adapt all these layers, and PEFT too? Llama has no biases, and a GPT-2 stores W as (in, out). Of
    an embedding alone: test_tokens.py."""
    if family == "gpt2" and "fan_in_fan_out" in variants()[variant][0].keys.lacks:
        return False
    model, targets = base(family, HEADS[family]), LAYERS[family][0]
    return adaptable(model, variant, targets, **options_for(variant, "", targets[-1], keys=False)) != []


each_variant = pytest.mark.parametrize(
    ("family", "variant", "flag"),
    [(f, *v) for v in [*((name, "") for name in variants()), *FLAGS] for f in LAYERS if on_all(v[0], f)],
)


@pytest.mark.each_value
@each_variant
def test_a_variant_comes_back_to_the_bit_and_saves_to_the_same_bytes(tmp_path, family, variant, flag):
    model = of_variant(family, variant, flag)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family, HEADS[family])
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert np.array_equal(logits(loaded), logits(model))
    assert set(loaded.trainable_parameters()) >= set(model.trainable_parameters())
    peft.save_adapter(loaded, tmp_path / "b")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    adapters = peft.Adapters(base(family, HEADS[family]))
    adapters.load("a", tmp_path / "a")
    adapters.activate("a")
    assert np.array_equal(logits(adapters.model), logits(model))


@pytest.mark.each_value
@pytest.mark.oracle
@pinned
@each_variant
def test_peft_loads_a_variant_with_the_same_logits_and_writes_the_same_tensors(tmp_path, family, variant, flag):
    hf, _ = pytest.importorskip("peft"), their_config(variant)
    model, head = of_variant(family, variant, flag), HEADS[family]
    peft.save_adapter(model, tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = hf.PeftModel.from_pretrained(their_base(tmp_path, family, head), tmp_path / "a").double()
    assert not [w for w in caught if re.search("missing adapter keys|nexpected keyword", str(w.message))]
    assert agree(model, theirs)
    theirs.save_pretrained(tmp_path / "back")
    ours, back = tensors(tmp_path / "a"), tensors(tmp_path / "back")
    assert set(ours) == set(back)
    assert all(np.array_equal(ours[name], back[name]) for name in ours)


@pytest.mark.each_value
@pytest.mark.oracle
@pinned
@each_variant
def test_what_peft_wrote_of_a_variant_loads_with_the_same_logits_and_is_written_back(tmp_path, family, variant, flag):
    make = their_config(variant)
    words = {"target_modules": LAYERS[family][1], **options_for(variant, flag, LAYERS[family][1][-1], keys=True)}
    words |= variants()[variant][0].keys.fixed
    theirs = their_adapter(tmp_path, family, HEADS[family], words, make)
    model = base(family, HEADS[family])
    peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)
    peft.save_adapter(model, tmp_path / "ours")
    written, read = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert set(written) == set(read)
    assert all(np.array_equal(written[name], read[name]) for name in read)
    one, two = config(tmp_path / "ours"), config(tmp_path / "theirs")
    two["target_modules"].sort()
    assert {key for key in one if one[key] != two[key]} <= {"base_model_name_or_path"}


@pytest.mark.oracle
@pinned
def test_adapters_on_parts_of_a_fused_layer_are_written_as_one_that_computes_the_same_here_and_in_peft(tmp_path):
    hf, model = pytest.importorskip("peft"), adapted("gpt2", "lm", ["q_proj", "v_proj"])
    peft.save_adapter(model, tmp_path / "a")
    assert config(tmp_path / "a")["target_modules"] == ["c_attn"]
    assert config(tmp_path / "a")["r"] == 2 * 3
    loaded = base("gpt2")
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert close(logits(loaded), logits(model), 1e-12)
    assert agree(model, hf.PeftModel.from_pretrained(their_base(tmp_path, "gpt2"), tmp_path / "a"))


def test_two_variants_on_one_model_are_not_written(tmp_path):
    model = adapted("llama", "lm", ["q_proj"])
    attach(model, "ia3", ["k_proj"], rng=0)
    with pytest.raises(ValueError, match="the adapters are of 2 variants, ia3, lora, and PEFT's file holds one"):
        peft.save_adapter(model, tmp_path / "a")


# ---- what is refused: nothing of the model changes ----


def plain(tmp_path: Any, **words: Any) -> Any:
    peft.save_adapter(adapted("llama", "lm", **{"targets": ["q_proj", "v_proj"], **words}), tmp_path / "a")
    return tmp_path / "a"


def without(*names: str) -> Any:
    return lambda t: {name: x for name, x in t.items() if not any(part in name for part in names)}


L = "base_model.model.model.layers"
KNOWN = ", ".join(sorted({classes[0].peft_type for classes in variants().values()}))
DAMAGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    **{
        key: ({}, {key: "x"}, f"{key} = 'x' is not supported")
        for key in variants()["lora"][0].keys.fixed
        if key != "alora_invocation_tokens"  # with which it is another variant, and a list: test_alora.py
    },
    "a key of next year": ({}, {"use_magic": 3}, "use_magic = 3 is not known here"),
    "bias": ({}, {"bias": "some"}, "bias = 'some' is not one of none, all, lora_only"),
    "a bias that there is not": ({}, {"bias": "dora_only"}, "bias = 'dora_only'"),
    "modules_to_save": ({}, {"modules_to_save": "norm"}, "modules_to_save is a list of names, not 'norm'"),
    "an empty name": ({}, {"modules_to_save": [""]}, "modules_to_save is a list of names, not"),
    "exclude_modules": ({}, {"exclude_modules": "("}, r"exclude_modules: '\(' is not a regular expression"),
    "exclude_modules, a number": ({}, {"exclude_modules": 3}, "a list of names or a regular expression, not 3"),
    "layers": ({}, {"layers_to_transform": "1"}, "layers_to_transform = '1' is not a list of numbers"),
    "layers, true": ({}, {"layers_to_transform": True}, "layers_to_transform = True"),
    "one layer of two": ({}, {"layers_to_transform": [0]}, "do not name model.layers.1.self_attn.q_proj, which has"),
    "layers_pattern": ({}, {"layers_pattern": ["["]}, r"layers_pattern: '\[' is not a regular expression"),
    "excluded, and there": ({}, {"exclude_modules": ["v_proj"]}, "do not name model.layers.0.self_attn.v_proj"),
    "saved, and adapted": ({}, {"modules_to_save": ["q_proj"]}, "do not name .*q_proj, which has tensors"),
    "rank_pattern": ({}, {"rank_pattern": ["q_proj"]}, "rank_pattern maps regular expressions to numbers"),
    "a rank": ({}, {"rank_pattern": {"q_proj": 99}}, "has shape"),
    "no rank": ({}, {"rank_pattern": {"q_proj": 0}}, "rank_pattern: r 0 is not a whole number from 1"),
    "an alpha without end": ({}, {"lora_alpha": 10**400}, r"lora_alpha: alpha 10{79}\.\.\. is not a number"),
    "an alpha": ({}, {"alpha_pattern": {"q_proj": "x"}}, "alpha 'x' is not a number"),
    "dropout": ({}, {"lora_dropout": 2}, "dropout 2 is not a probability"),
    "a target that is a norm": (
        {}, {"target_modules": ["q_proj", "v_proj", "norm"]}, r"model: model\.norm: .*this is of type RMSNorm",
    ),
    "a target of another family": (
        {}, {"target_modules": ["q_proj", "c_attn", "v_proj"]},
        r"adapter_config\.json does not fit .* target_modules: nothing in this llama matches 'c_attn'; .* another base",
    ),
    "a target that holds others": ({}, {"target_modules": ["q_proj", "v_proj", "mlp"]}, "matches 'mlp'"),
    "five names": ({}, {"target_modules": [*"abcde", "q_proj"]}, r"matches 'a', 'b', 'c', \.\.\.; "),
    "an end of a name": ({}, {"target_modules": ["q_proj", "v_proj", "proj"]}, "matches 'proj'"),
    "an exclusion": ({}, {"exclude_modules": ["1.mlp", "vision"]}, "exclude_modules: nothing .* matches 'vision'"),
    "an exclusion by regex": ({}, {"exclude_modules": ".*vision.*"}, "exclude_modules: nothing .* matches '.*vision"),
    "a saved module": ({}, {"modules_to_save": ["score"]}, "modules_to_save: nothing in this llama matches 'score'"),
    "a saved module of a classifier": (
        {}, {"modules_to_save": ["dense", "classifier", "score"], "task_type": "SEQ_CLS"}, "llama matches 'dense';",
    ),
    "a task that is none": ({}, {"modules_to_save": ["score"], "task_type": ["SEQ_CLS"]}, "llama matches 'score'"),
    "a name of a rank": ({}, {"rank_pattern": {"c_attn": 2}}, "rank_pattern: nothing in this llama matches 'c_attn'"),
    "a name of an alpha": ({}, {"alpha_pattern": {"q": 2}}, "alpha_pattern: nothing in this llama matches 'q'"),
    "a layer beyond": ({}, {"layers_to_transform": [0, 1, 2]}, "this llama has layers 0 to 1, and not 2; the ad"),
    "a layer below": ({}, {"layers_to_transform": -1}, "this llama has layers 0 to 1, and not -1"),
    "a pattern of layers": (
        {}, {"layers_to_transform": [0, 1], "layers_pattern": ["layers", "h"]}, "layers_pattern: nothing in .* 'h'",
    ),
    "a pattern without layers": (
        {}, {"layers_pattern": "layers"}, "layers_pattern = 'layers' does nothing without layers_to_transform",
    ),
    "layers beside a regex": (
        {}, {"layers_to_transform": [0, 1], "target_modules": ".*[qv]_proj"},
        r"layers_to_transform = \[0, 1\] does nothing with target_modules = '\.\*\[qv\]_proj'",
    ),
    "no type": ({}, {"peft_type": None}, f"peft_type = None is not read here, only {KNOWN}: "),
    "no name of a dropout": ({}, {"lora_dropout": ""}, "lora_dropout: dropout '' is not a probability below 1"),
    "an alpha of nothing": ({}, {"alpha_pattern": {"o_proj": "x"}}, "alpha_pattern: alpha 'x' is not a number"),
    "a rank without end": ({}, {"r": 10**400}, r"r: r 10{79}\.\.\. is not a whole number from 1 to 2147483647"),
    "a key without end": ({}, {"use_magic": "x" * 10**4}, r"use_magic = 'x{79}\.\.\. is not known here"),
    "another storage": ({}, {"fan_in_fan_out": True}, r"fan_in_fan_out = True is for layers stored as \(in, out\)"),
    "a tie": ({}, {"ensure_weight_tying": "yes"}, "ensure_weight_tying = 'yes' is neither true nor false"),
    "a saved norm that is not there": ({}, {"modules_to_save": ["norm"]}, "missing: .*input_layernorm.weight"),
    "another prefix": (
        {"to_tensors": lambda t: {x.replace("base_model.model.", "base_model."): y for x, y in t.items()}}, {},
        r"another model: base_model\.model\.layers\.0\..* is there, and base_model\.model\.model\.layers\.0\..* needed",
    ),
    "an integer": (
        {"to_tensors": lambda t: t | {f"{L}.0.self_attn.q_proj.lora_A.weight": np.ones((3, 12), int)}}, {},
        "is of int64, and must be floating point",
    ),
    "a bias of the base": (
        {"to_tensors": lambda t: t | {f"{L}.0.self_attn.q_proj.base_layer.weight": np.zeros((12, 12))}}, {},
        "base_layer.weight is not the weight of this base",
    ),
    "DoRA's tensor": (
        {"to_tensors": lambda t: t | {f"{L}.0.self_attn.q_proj.lora_magnitude_vector": np.ones(12)}}, {},
        "unexpected: .*lora_magnitude_vector",
    ),
    "no B": ({"to_tensors": without("0.self_attn.q_proj.lora_B")}, {}, "missing: .*q_proj.lora_B.weight"),
    "nothing": ({"to_tensors": lambda t: {}}, {}, "it holds no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_peft_would_only_warn_of_or_ignore_is_refused_and_the_model_stays_as_it_was(tmp_path, name):
    to_tensors, to_config, message = DAMAGES[name]
    folder, model = plain(tmp_path), base("llama")
    damaged(folder, **to_tensors, **to_config)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        peft.load_adapter(model, folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert snapshot(model) == before


@pytest.mark.oracle
def test_an_adapter_of_another_kind_is_called_by_its_name_and_the_advice_is_one_that_peft_can_follow():
    mapping = pytest.importorskip("peft.mapping")
    known = {classes[0].peft_type for classes in variants().values()}
    for kind in mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
        if kind.value in known:
            continue
        with pytest.raises(ValueError, match=f"peft_type = '{kind.value}' is not read here, only {KNOWN}: ") as caught:
            check_config({"peft_type": kind.value})  # most have no r and no lora_alpha
        tuner = mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind]
        assert ("merge_and_unload" in str(caught.value)) == hasattr(tuner, "merge_and_unload"), kind
    assert set(PROMPTS) <= {kind.value for kind in mapping.PEFT_TYPE_TO_CONFIG_MAPPING}


@pytest.mark.parametrize("key", ["r", "lora_alpha", "peft_type"])
def test_a_config_that_lacks_what_peft_always_writes_is_refused(tmp_path, key):
    folder = plain(tmp_path)
    (folder / peft.CONFIG).write_text(json.dumps({k: x for k, x in config(folder).items() if k != key}))
    with pytest.raises(ValueError, match=f"it lacks '{key}', which PEFT always writes"):
        peft.load_adapter(base("llama"), folder)


@pytest.mark.parametrize(("head", "tied"), [("lm", False), ("classify", True), ("none", True)])
def test_a_tie_is_refused_by_a_base_that_has_none(tmp_path, head, tied):
    peft.save_adapter(adapted("llama", head, ["q_proj"], tied=tied), tmp_path / "a")
    damaged(tmp_path / "a", ensure_weight_tying=True)
    with pytest.raises(ValueError, match="ensure_weight_tying = True, and this llama ties no head to its embedding"):
        peft.load_adapter(base("llama", head, tied=tied), tmp_path / "a")


def test_a_layer_that_is_adapted_already_is_called_as_in_the_file(tmp_path):
    model, whole = adapted("llama", "lm", ["q_proj"]), adapted("llama", "lm", ["k_proj"])
    whole["block_0.attention.q_proj"].weight.trainable = True
    for name, other in (("pair", adapted("llama", "lm", ["q_proj"])), ("whole", whole)):
        peft.save_adapter(other, tmp_path / name)
        with pytest.raises(ValueError, match=r"model: model\.layers\.0\.self_attn\.q_proj: this layer is adapted alr"):
            peft.load_adapter(model, tmp_path / name)


# PEFT writes these, of a model that has only some of what they name, and says nothing, or warns.
IDLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "target_modules": ({"target_modules": ["q_proj", "W_pack"]}, {"target_modules": ["q_proj"]}, "'W_pack'"),
    "exclude_modules": ({"exclude_modules": ["vision"]}, {"exclude_modules": None}, "'vision'"),
    "exclude_modules, a regex": ({"exclude_modules": ".*tower.*"}, {"exclude_modules": None}, "'.*tower.*'"),
    "modules_to_save": ({"modules_to_save": ["norm", "ln_f"]}, {"modules_to_save": ["norm"]}, "'ln_f'"),
    "rank_pattern": ({"rank_pattern": {"W_pack": 2}}, {"rank_pattern": {}}, "'W_pack'"),
    "alpha_pattern": ({"alpha_pattern": {"W_pack": 2}}, {"alpha_pattern": {}}, "'W_pack'"),
    "layers_to_transform": ({"layers_to_transform": [1, 7]}, {"layers_to_transform": [1]}, "and not 7"),
    "layers_pattern": (
        {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, {"layers_pattern": ["layers"]}, "'h'",
    ),
    "ensure_weight_tying": (
        {"ensure_weight_tying": True, "task_type": "FEATURE_EXTRACTION"}, {"ensure_weight_tying": False},
        "ties no head",
    ),
}  # fmt: skip


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("name", IDLE)
def test_what_peft_wrote_with_names_that_match_nothing_is_refused_and_loads_when_they_are_taken_out(tmp_path, name):
    words, mended, message = IDLE[name]
    head = "none" if name == "ensure_weight_tying" else "lm"
    theirs = their_adapter(tmp_path, "llama", head, words)
    model = base("llama", head)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        peft.load_adapter(model, tmp_path / "theirs")
    assert name.partition(",")[0] in str(caught.value)
    assert snapshot(model) == before
    damaged(tmp_path / "theirs", **mended)
    peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)


@pytest.mark.each_value
@pytest.mark.oracle
@pinned
@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("lm", None),
        ("lm", "CAUSAL_LM"),
        ("lm", "SEQ_CLS"),  # PEFT takes any task with any model
        ("classify", None),
        ("classify", "SEQ_CLS"),
        ("classify", "TOKEN_CLS"),
        ("none", "FEATURE_EXTRACTION"),
        ("none", "TOKEN_CLS"),
        ("none", "QUESTION_ANS"),
    ],
)
@pytest.mark.parametrize("family", TESTED)
def test_the_names_that_peft_adds_for_a_task_are_read_whatever_the_model_has(tmp_path, family, head, task):
    if task == "CAUSAL_LM" and family not in DECODERS:
        pytest.skip("PEFT needs a model that generates")
    known = pytest.importorskip("peft.utils.constants").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    targets = None if family in known else THEIRS[family]
    theirs = their_adapter(tmp_path, family, head, {"task_type": task, "target_modules": targets})
    model = base(family, head)
    peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)


@pytest.mark.oracle
@pinned
def test_the_tensors_of_a_pooler_that_is_lacking_are_said_in_the_note(tmp_path):
    theirs = their_adapter(tmp_path, "bert", "none", {"target_modules": "all-linear"})
    model = base("bert", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = [peft.Adapters(model).load("a", tmp_path / "theirs"), peft.load_adapter(model, tmp_path / "theirs")]
    for note in notes:
        assert "does not say which base it is for" in note
        assert "2 of its tensors are for a pooler, which a model without a head lacks" in note
    assert agree(model, theirs)


HOSTILE = [
    "(.*)*(.*)*(.*)*(.*)*x$", "(.|..)*x", ".*.*.*.*.*x", "(|)" * 30 + "x", ".?" * 40 + "x", "(?:){1000000000}x",
    "(x{1000}){1000}", "(?=(.*)*x)", "(.)?(?(1)(.*)*|x)y", "((((((a?)*)*)*)*)*)*", "(" * 5000,
]  # fmt: skip


@pytest.mark.each_value
@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("key", [*REGULAR, *WHOLE])
def test_a_pattern_that_could_run_for_minutes_is_refused_by_its_key(tmp_path, key, pattern):
    value = {pattern: 3} if key in ("rank_pattern", "alpha_pattern") else pattern if key in REGULAR else [pattern]
    folder = plain(tmp_path)
    damaged(folder, **{key: value, **({"layers_to_transform": [1]} if key == "layers_pattern" else {})})
    line = refusal(lambda folder: peft.load_adapter(base("llama"), folder), folder)
    assert line
    assert f"{key}: " in line
    assert "could run for minutes" in line or "not a regular expression" in line


PARTS = "self_attn|attention|attn|mlp|feed_forward|ffn|dense"
LINEAR = "|".join(rf"\b{name}\b" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"))


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|v)_proj",
        r"model\.layers\.[0-9]+\..*(query|value|q_proj|v_proj)",
        r"^(?!.*visual).*(?:q_proj|v_proj)",
        r".*\.layers\.(1[0-9]|2[0-7]|[0-9])\..*\.(q_proj|v_proj)",
        rf"(?:.*?(?:vision|language|text).*?(?:{PARTS}).*?(?:{LINEAR}).*?)|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{PARTS})\.(?:[qv]_proj))",
    ],
)
def test_the_patterns_that_people_write_are_read(tmp_path, pattern):
    folder, model = plain(tmp_path), base("llama")
    damaged(folder, target_modules=pattern)
    peft.load_adapter(model, folder)
    assert sum(isinstance(module, Adapter) for _, module in model.named_modules()) == 4


@given(st.text(r".*+?()|ax{2}", max_size=14))
@settings(max_examples=examples.count(300), deadline=None, derandomize=True)
def test_what_is_left_of_all_patterns_is_quick_on_the_longest_of_names(pattern):
    try:
        check_pattern("target_modules", pattern)
    except ValueError:
        return
    with bounded(0.5):
        re.fullmatch(pattern, "bert.encoder.layer.11.attention.output.LayerNormaaaa")


def test_numbers_that_a_narrower_model_cannot_hold_are_refused(tmp_path):
    name = f"{L}.0.self_attn.q_proj.lora_A.weight"
    damaged(plain(tmp_path), to_tensors=lambda t: t | {name: np.full((3, 12), 1e300)})
    with pytest.raises(ValueError, match=r"q_proj\.lora_A\.weight holds numbers that are too large for float32"):
        peft.load_adapter(base("llama", dtype="float32"), tmp_path / "a")


def test_an_alpha_that_a_narrower_model_cannot_hold_is_refused_though_B_is_zero(tmp_path):
    damaged(plain(tmp_path), lora_alpha=1e300, to_tensors=lambda t: {n: x * ("lora_B" not in n) for n, x in t.items()})
    with pytest.raises(ValueError, match=r"s = 3.33e\+299 of .*q_proj makes s B A too large for float32"):
        peft.load_adapter(base("llama", dtype="float32"), tmp_path / "a")
    damaged(tmp_path / "a", lora_alpha=10**300)
    with pytest.raises(ValueError, match=r"s = 3.33e\+299 of model\.layers\.0\.self_attn\.q_proj makes"):
        peft.load_adapter(base("llama", dtype="float32"), tmp_path / "a")


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("family", MASKED_HEAD)
def test_a_masked_head_that_peft_saves_whole_has_its_bias_twice_and_loads(tmp_path, family):
    theirs = their_adapter(tmp_path, family, "lm", {"modules_to_save": [MASKED_HEAD[family]]})
    model = base(family)
    peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)
    peft.save_adapter(model, tmp_path / "ours")
    hf = pytest.importorskip("peft")
    again = hf.PeftModel.from_pretrained(their_base(tmp_path, family), tmp_path / "ours")
    assert agree(model, again)


@pytest.mark.oracle
@pinned
def test_a_rank_above_what_the_layer_can_use_is_allowed_as_in_peft_and_said_where_it_is_read_and_made(tmp_path):
    theirs = their_adapter(tmp_path, "llama", "lm", {"r": 32, "target_modules": ["k_proj", "embed_tokens"]})
    model, wasted = base("llama"), "rank 32 of .* is above"
    assert re.search(wasted, peft.load_adapter(model, tmp_path / "theirs"))
    assert agree(model, theirs)
    peft.save_adapter(model, tmp_path / "ours")
    assert config(tmp_path / "ours")["r"] == 32
    with pytest.warns(UserWarning, match=wasted):
        minilora.attach_lora(base("llama"), ["k_proj"], r=32, rng=np.random.default_rng(0))


def test_a_pickle_is_refused_with_the_reason_and_not_read(tmp_path):
    folder = plain(tmp_path)
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle, which can run code and is never read"):
        peft.load_adapter(base("llama"), folder)


def test_the_hash_of_the_base_is_of_what_the_adapter_does_not_carry(tmp_path):
    model = adapted("bert", "lm", ["q_proj"], train=["norm", "bias"])
    peft.save_adapter(model, tmp_path / "a")
    other = base("bert")
    for name, parameter in other.named_parameters().items():
        if name.endswith("bias") or "norm" in name:
            parameter.data = parameter.data + 1
    assert peft.load_adapter(other, tmp_path / "a") == ""
    assert np.array_equal(logits(other), logits(model))
    for name in ("block_0.mlp.up_proj.weight", "embed.token.weight"):
        another = base("bert")
        another.named_parameters()[name].data = another.named_parameters()[name].data + 1
        with pytest.raises(ValueError, match="another base"):
            peft.load_adapter(another, tmp_path / "a")


def test_some_of_the_biases_are_refused_by_saving_and_those_of_the_adapted_layers_are_not(tmp_path):
    model = adapted("bert", "lm", ["q_proj"])
    model["block_0.attention.q_proj"].base.bias.trainable = True
    with pytest.raises(ValueError, match=r"1 of 20 biases train \(block_0\.attention\.q_proj, \.\.\.\)"):
        peft.save_adapter(model, tmp_path / "a")
    model["block_1.attention.q_proj"].base.bias.trainable = True
    peft.save_adapter(trained(model), tmp_path / "a")
    assert config(tmp_path / "a")["bias"] == "lora_only"
    loaded = base("bert")
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(logits(loaded), logits(model))
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters())


def test_names_are_as_short_as_they_can_be_and_name_nothing_else(tmp_path):
    def named(family: str, head: str, targets: Any, **words: Any) -> tuple[list[str], Any]:
        folder = tmp_path / f"{family}-{head}-{len(list(tmp_path.iterdir()))}"
        peft.save_adapter(adapted(family, head, targets, **words), folder)
        return config(folder)["target_modules"], config(folder)["modules_to_save"]

    assert named("gpt2", "lm", ["qkv_proj", "o_proj"]) == (["attn.c_proj", "c_attn"], None)
    assert named("llama", "lm", {"block_1.mlp.up_proj": 2}) == (["1.mlp.up_proj"], None)
    assert named("bert", "lm", ["up_proj", "down_proj"])[0] == [
        "0.output.dense", "1.output.dense", "intermediate.dense",
    ]  # fmt: skip
    assert named("bert", "classify", ["embed"]) == (["word_embeddings"], ["classifier", "score"])
    assert named("llama", "lm", ["q_proj"], train=["norm"])[1] == [
        "input_layernorm",
        "norm",
        "post_attention_layernorm",
    ]


def test_adapters_are_read_without_their_model_and_beside_the_weight_that_peft_writes_with_a_head(tmp_path):
    for words, count in ({"targets": {"lm_head": 2, "q_proj": 4}, "rslora": True}, 3), ({"targets": ["embed"]}, 1):
        folder, model = tmp_path / str(count), adapted("llama", "lm", **words)
        peft.save_adapter(model, folder)
        assert any("base_layer.weight" in name for name in tensors(folder))
        layers = peft.layers_in(folder, config(folder), tensors(folder))
        assert len(layers) == count
        for path, module in peft.adapters_of(model).items():
            assert np.array_equal(layers[hf_name(model, path)].delta(), module.delta())


# ---- a tied head ----


def tied_pair(family: str) -> Transformer:
    targets = ["embed", *attention(family)]
    return trained(adapted(family, "lm", targets, ensure_weight_tying=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pair_with_one_adapter_comes_back_as_one(tmp_path, family):
    model = tied_pair(family)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family)
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(logits(loaded), logits(model))
    assert loaded["lm_head"].lora_A is loaded["embed.token"].lora_A
    peft.save_adapter(loaded, tmp_path / "b")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one, two = (adapter_changes(tmp_path / "a").layers[hf_name(model, path)] for path in ("embed.token", "lm_head"))
    np.testing.assert_allclose(one.update().sigma, two.update().sigma, rtol=1e-9)
    damaged(tmp_path / "a", to_tensors=lambda t: {n: 2 * x if "lm_head.lora_A" in n else x for n, x in t.items()})
    with pytest.raises(ValueError, match=r"lm_head\.lora_A\.weight is not .*lora_embedding_B transposed"):
        peft.load_adapter(base(family), tmp_path / "a")


def test_a_pair_that_peft_cannot_tie_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="PEFT ties only what is called embed_tokens or lm_head"):
        peft.save_adapter(tied_pair("bert"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pair_that_is_trained_whole_stays_one(tmp_path, family):
    model = adapted(family, "lm", attention(family), train=["token"])
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family)
    peft.load_adapter(loaded, tmp_path / "a")
    assert loaded["lm_head"].weight is loaded["embed.token"].weight
    assert np.array_equal(logits(loaded), logits(model))
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters())
    minilora.save_pretrained(base(family), tmp_path / "m")
    whole = adapter_changes(tmp_path / "a", tmp_path / "m").others
    assert set(whole) == {f"{hf_name(model, path)}.weight" for path in ("embed.token", "lm_head")}


def test_copies_of_a_tied_pair_that_are_not_tied_may_differ(tmp_path):
    model = adapted("llama", "lm", ["q_proj"], train=["token"])
    peft.save_adapter(model, tmp_path / "a")
    names = ["embed_tokens", "lm_head"]
    head = "base_model.model.lm_head.weight"
    damaged(tmp_path / "a", lambda t: t | {head: 2 * t[head]}, modules_to_save=names, ensure_weight_tying=False)
    loaded = base("llama")
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(loaded["lm_head"].weight.data, 2 * loaded["embed.token"].weight.data)


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("what", ["adapted", "whole"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_ties_what_we_tie_and_we_what_it_does(tmp_path, family, what):
    hf = pytest.importorskip("peft")
    ours = tied_pair(family) if what == "adapted" else adapted(family, "lm", attention(family), train=["token"])
    peft.save_adapter(ours, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(their_base(tmp_path, family), tmp_path / "a")
    assert agree(ours, theirs)
    names = {"llama": "embed_tokens", "gpt2": "lm_head"}  # it does not see GPT-2's wte
    words: dict[str, Any] = {"modules_to_save": [names[family]]}
    if what == "adapted":
        words = {"target_modules": [names[family], *THEIRS[family]]}
    theirs = their_adapter(tmp_path, family, "lm", {**words, "ensure_weight_tying": True})
    model = base(family)
    peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)
    assert (model["lm_head"].weight if what == "whole" else model["lm_head"].lora_A) is (
        model["embed.token"].weight if what == "whole" else model["embed.token"].lora_A
    )


# ---- several on one base ----


def test_adapters_are_switched_without_reloading_and_the_base_comes_back_bit_for_bit(tmp_path):
    made = {
        "norms": adapted("bert", "classify", ["q_proj", "embed"], train=["norm", "classifier"], r=2),
        "biases": adapted("bert", "classify", ["v_proj", "q_proj"], train=["bias"]),
        "plain": adapted("bert", "classify", "all-linear", rslora=True),
    }
    model = base("bert", "classify")
    adapters = peft.Adapters(model)
    before, alone = snapshot(model), logits(model)
    arrays = {name: x.copy() for name, x in model.state_dict().items()}
    for name, other in made.items():
        peft.save_adapter(other, tmp_path / name)
        assert adapters.load(name, tmp_path / name) == ""
    assert snapshot(model) == before
    for name in ("norms", "plain", "biases", "plain", "norms"):
        adapters.activate(name)
        assert adapters.active == name
        assert np.array_equal(logits(model), logits(made[name]))
        train_one_step(model)
        if name == "biases":
            continue
        adapters.activate(None)
        assert snapshot(model) == before
        assert np.array_equal(logits(model), alone)
        made[name] = None
        adapters.activate(name)
        made[name] = copy.deepcopy(model)
    adapters.activate(None)
    assert snapshot(model) == before
    assert all(np.array_equal(x, arrays[name]) for name, x in model.state_dict().items())


def train_one_step(model: Transformer) -> None:
    y, cache = model.forward(IDS, Inputs(padding=PADDING))
    grads = Gradients()
    model.backward(np.ones_like(y), cache, grads)
    SGD(model.trainable_parameters(), lr=0.01).step(grads)


def test_an_adapter_that_cannot_be_loaded_leaves_the_active_one_and_the_base(tmp_path):
    peft.save_adapter(adapted("llama", "lm", ["q_proj"]), tmp_path / "a")
    peft.save_adapter(adapted("llama", "lm", ["q_proj"], seed=7), tmp_path / "other")
    model = base("llama")
    adapters = peft.Adapters(model)
    adapters.load("a", tmp_path / "a")
    adapters.activate("a")
    before = snapshot(model)
    for name, folder, message in (
        ("b", "other", "another base"),
        ("a", "a", "is called 'a' already"),
        ("", "a", "a name"),
    ):
        with pytest.raises(ValueError, match=message):
            adapters.load(name, tmp_path / folder)
        assert snapshot(model) == before
    with pytest.raises(KeyError, match="no adapter is called 'b': choose from a"):
        adapters.activate("b")
    assert snapshot(model) == before
    adapters.load("b", tmp_path / "a")
    assert snapshot(model) == before
    with pytest.raises(ValueError, match="is adapted already: Adapters takes a model without"):
        peft.Adapters(model)


# ---- merging ----


@pytest.mark.each_value
@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("name", ["embedding", "all-linear", "bias all", "a norm whole", "the embedding whole"])
@pytest.mark.parametrize("family", TESTED)
def test_a_merged_model_loads_in_transformers_with_the_logits_of_peft(tmp_path, family, name):
    if family in UNBIASED and name.startswith("bias"):
        pytest.skip(f"a {family} has no bias")
    theirs = their_adapter(tmp_path, family, "lm", CONFIGS[name](family))
    model = base(family)
    peft.load_adapter(model, tmp_path / "theirs")
    before, adapted_logits = snapshot(model), logits(model)
    minilora.merge(model)
    assert close(logits(model)[PADDING], adapted_logits[PADDING], 1e-12)
    minilora.save_pretrained(model, tmp_path / "merged")
    merged = their_model(model, tmp_path / "merged")
    merged.config.pad_token_id = theirs.config.pad_token_id
    assert agree(model, merged)
    assert close(their_logits(merged, "lm")[PADDING], their_logits(theirs, "lm")[PADDING], 1e-5)
    again = minilora.load_pretrained(tmp_path / "merged", "float64")
    assert all(np.array_equal(x, again.state_dict()[path]) for path, x in model.state_dict().items())
    assert close(logits(again), logits(model), 1e-12)  # BLAS may round weights of another memory order otherwise
    minilora.unmerge(model)
    assert snapshot(model) == before


# ---- gradients ----


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("tie", [False, True])
def test_the_gradients_of_an_embeddings_A_and_B_are_those_of_peft_summed_where_it_holds_them_twice(tmp_path, tie):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    ours = adapted("gpt2", "lm", ["embed", "qkv_proj"], ensure_weight_tying=tie)
    peft.save_adapter(ours, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(their_base(tmp_path, "gpt2"), tmp_path / "a", is_trainable=True)
    dy = np.random.default_rng(4).standard_normal((*IDS.shape, V))
    theirs(input_ids=torch.tensor(IDS)).logits.backward(torch.tensor(dy))
    grads = Gradients()
    ours.backward(dy, ours.forward(IDS)[1], grads)
    named = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    table, head = "base_model.model.transformer.wte.lora_embedding_", "base_model.model.lm_head.lora_"
    for one, other in ("AB", "BA"):
        expected = named[f"{table}{one}.default"]
        if tie:
            expected = expected + named[f"{head}{other}.default.weight"].T
        assert close(grads[getattr(ours["embed.token"], f"lora_{one}")], expected, 1e-10)
    for i in (0, 1):
        expected = named[f"base_model.model.transformer.h.{i}.attn.c_attn.lora_A.default.weight"]
        assert close(grads[ours[f"block_{i}.attention.qkv_proj"].lora_A], expected, 1e-10)


@pytest.mark.oracle
@pinned
def test_a_step_of_adam_moves_a_tied_adapter_by_the_rate_and_peft_moves_it_by_twice_the_rate(tmp_path):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    ours, lr = adapted("llama", "lm", ["embed"], ensure_weight_tying=True), 1e-3
    peft.save_adapter(ours, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(their_base(tmp_path, "llama"), tmp_path / "a", is_trainable=True)
    B = theirs.get_parameter("base_model.model.model.embed_tokens.lora_embedding_B.default")
    before = B.detach().clone()
    theirs(input_ids=torch.tensor(IDS)).logits.sum().backward()
    torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=lr).step()
    assert float((B - before).abs().max()) == pytest.approx(2 * lr, rel=1e-3)
    parameter = ours["embed.token"].lora_B
    start, grads = parameter.data, Gradients()
    y, cache = ours.forward(IDS)
    ours.backward(np.ones_like(y), cache, grads)
    AdamW(ours.trainable_parameters(), lr=lr, weight_decay=0).step(grads)
    assert np.abs(parameter.data - start).max() == pytest.approx(lr, rel=1e-3)


# ---- any config, and any damage ----


@st.composite
def their_configs(draw: Any) -> tuple[str, str, dict[str, Any]]:
    family, head = draw(st.sampled_from(PEFT_HEADS))
    names = {
        "gpt2": ["c_attn", "c_proj", "c_fc", "mlp.c_proj"],
        "llama": ["q_proj", "o_proj", "gate_proj", "mlp.up_proj"],
    }
    like_bert = ["query", "output.dense", "attention.output.dense", "dense", "1.intermediate.dense"]
    names |= {"qwen3": names["llama"], "bert": like_bert, "roberta": like_bert}
    holder = hub_name(family, "block_1.mlp.down_proj").split(".1.")[1].split(".")[0]
    own = [f"block_0.{path}" for path, m in base(family, head)["block_0"].named_modules() if isinstance(m, Linear)]
    linear = names.get(family, [their_name(family, path) for path in own])
    some = st.lists(st.sampled_from(linear), min_size=1, max_size=3, unique=True)
    targets = draw(st.one_of(some, some.map(lambda n: [*n, TABLE[family]]), some.map(lambda n: rf".*\.({'|'.join(n)})"),
                             st.just("all-linear")))  # fmt: skip
    words = {
        "target_modules": targets,
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.sampled_from([1, 8, 3.5])),
        "use_rslora": draw(st.booleans()),
        "lora_dropout": draw(st.sampled_from([0.0, 0.1])),
        "bias": draw(st.sampled_from(["none", "none", "all", "lora_only"])),
        "rank_pattern": draw(st.dictionaries(st.sampled_from([*linear, r".*\.1\..*"]), st.integers(1, 5), max_size=2)),
        "alpha_pattern": draw(st.dictionaries(st.sampled_from(linear), st.sampled_from([2, 0.5]), max_size=2)),
        "layers_to_transform": draw(st.sampled_from([None, None, 0, [1], [0, 1], []])),
        "exclude_modules": draw(st.sampled_from([None, None, linear[:1], r".*\.0\..*", [f"1.{holder}"]])),
        "modules_to_save": draw(st.sampled_from([None, None, [TABLE[family]], [NORM[family]]])),
    }
    if isinstance(targets, str):
        words["layers_to_transform"] = None
    return family, head, words


@pytest.mark.oracle
@pinned
@settings(max_examples=examples.count(40), deadline=None, derandomize=True)
@given(their_configs())
def test_whatever_peft_writes_is_read_as_peft_reads_it(tmp_path_factory, case):
    hf = pytest.importorskip("peft")
    family, head, words = case
    folder = tmp_path_factory.mktemp("case")
    model = base(family, head)
    try:
        their_adapter(folder, family, head, words)
    except Exception:  # what PEFT refuses to make is not ours to read
        return
    try:  # it writes the keys of a pattern sorted, and takes the first that matches: so it may not read what it wrote
        theirs = hf.PeftModel.from_pretrained(their_base(folder, family, head), folder / "theirs").eval()
    except RuntimeError:
        with pytest.raises(ValueError, match="has shape"):
            peft.load_adapter(model, folder / "theirs")
        return
    peft.load_adapter(model, folder / "theirs")
    assert agree(model, theirs)
    peft.save_adapter(model, folder / "ours")
    again = base(family, head)
    peft.load_adapter(again, folder / "ours")
    assert np.array_equal(logits(again), logits(model))


VALUES = [
    None, True, False, 0, -1, 3, 2.5, 1e308, 10**30, float("nan"), "", "x", "(", ".*", "all-linear", "lora_only", [],
    {}, [1],
    ["q_proj"], ["lm_head"], ["embed_tokens"], [None], [[]], {"a": 1}, {"q_proj": None}, {"(": 2}, {"q_proj": []},
    ["classifier"], ["dense"],
]  # fmt: skip
SHAPES = [(), (0,), (3,), (2, 12), (0, 3), (31, 12), (2, 3, 4)]
STRANGE = [
    "zz", "base_model.model.lm_head.weight", "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
    "a.modules_to_save.bias", "x.original_module.bias", "base_model.model.classifier.modules_to_save.bias",
    "base_model.model.lm_head.lora_A.weight",
]  # fmt: skip


def damage(rng: np.random.Generator, says: dict[str, Any], held: dict[str, np.ndarray], known: list[str]) -> None:
    """Change some keys of the config, and some tensors."""
    keys = [*known, "of_next_year"]
    for _ in range(rng.integers(0, 4)):
        says[keys[rng.integers(len(keys))]] = VALUES[rng.integers(len(VALUES))]
    for _ in range(rng.integers(0, 3)):
        name, kind = list(held)[rng.integers(len(held))], rng.integers(6)
        x = held.pop(name)
        if kind == 0:
            held[name] = x.reshape(-1)
        elif kind == 1:
            held[name.replace("model.", "", 1)] = x
        elif kind == 2:
            held[name] = x.astype(["i8", "f2", "f4", "?"][rng.integers(4)])
        elif kind == 3:
            held |= {name: x, STRANGE[rng.integers(len(STRANGE))]: np.zeros(SHAPES[rng.integers(len(SHAPES))])}
        elif kind == 4 and x.ndim:
            held[name] = x[:1]
        if not held:
            return


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_adapter_is_refused_in_one_line_or_read_and_the_model_stays_as_it_was(tmp_path, seed):
    whole: list[tuple[Transformer, Any]] = []
    for i, (family, head, words) in enumerate([
        ("llama", "lm", {"targets": ["embed", "q_proj"], "ensure_weight_tying": True}),
        ("bert", "classify", {"targets": ["q_proj"], "train": ["bias"]}),
        ("gpt2", "lm", {"targets": {"qkv_proj": 2, "o_proj": 3}, "train": ["norm"]}),
        ("bert", "lm", {"targets": ["lm_head"], "train": ["bias"]}),
    ]):  # fmt: skip
        peft.save_adapter(adapted(family, head, **words), tmp_path / f"{i}")
        whole.append((base(family, head), tmp_path / f"{i}"))
    for variant, classes in variants().items():
        family = next((family for family in LAYERS if on_all(variant, family)), "")
        if family:
            made = of_variant(family, variant, "")
        else:  # of its own layers, beside LoRA; or with options of its own
            family, made = "llama", adapted("llama", "lm", ["q_proj"]) if classes[0].companion else base("llama")
            attach(made, variant, rng=2, **classes[0].examples[""])
        peft.save_adapter(made, tmp_path / variant)
        whole.append((base(family, HEADS[family]), tmp_path / variant))
    rng, refused = np.random.default_rng(seed), 0
    tries = examples.count(100)
    for _ in range(tries):
        model, folder = whole[rng.integers(len(whole))]
        model.freeze()
        says, held, before = config(folder), tensors(folder), snapshot(model)
        damage(rng, says, held, sorted(known_keys(classes_of(says)[0])))
        (tmp_path / "case").mkdir(exist_ok=True)
        (tmp_path / "case" / peft.CONFIG).write_text(json.dumps(says))
        save_tensors(tmp_path / "case" / peft.WEIGHTS, held, {})
        try:
            read_modules(model, tmp_path / "case")
        except ValueError as error:
            refused += "\n" not in str(error)
        assert snapshot(model) == before
    assert tries / 3 < refused < tries


def test_what_an_adapter_changes_in_a_gpt2_is_in_the_orientation_of_its_layers(tmp_path):
    model = adapted("gpt2", "lm", ["qkv_proj", "o_proj"])
    minilora.save_pretrained(base("gpt2"), tmp_path / "m")
    peft.save_adapter(model, tmp_path / "a")
    layers = adapter_changes(tmp_path / "a", tmp_path / "m").layers
    for name, path in (("c_attn", "qkv_proj"), ("c_proj", "o_proj")):  # c_proj is square, so its shape tells nothing
        change, layer = layers[f"transformer.h.1.attn.{name}"], model[f"block_1.attention.{path}"]
        assert np.array_equal(change.before, layer.base.weight.data)
        np.testing.assert_allclose(change.after, layer.base.weight.data + layer.delta(), rtol=1e-12)
