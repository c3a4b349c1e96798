"""Record what the library writes, and compare: python tests/tools/record.py write FILE | compare FILE

For a change that must not change results. The record maps a name to the sha256 of a file, or of what a command prints:
adapters from `finetune`, merged models, PEFT adapters read and written, `verify`, `count` for every model and method,
`rank`. It uses the command line and the files alone, so it survives a change of every name in the package. `compare`
records anew and prints each difference; its exit code is 1 if there is one. Takes about a minute.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # another number of threads may round otherwise

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from tqdm import tqdm  # noqa: E402

from minilora.cli import main  # noqa: E402

V, C, F, T = 260, 16, 24, 64  # vocabulary, width, MLP width, positions
TEXT = "".join(f"def f{i}(x):\n    return x + {i}  # adds {i * 7 % 11}\n" for i in range(400))
WORDS = ["good", "bad", "fine", "poor", "great", "awful", "nice", "dull"]
CHAT = "{% for m in messages %}<|turn|>{{ m['role'] }}: {{ m['content'] }}<|done|>{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"


def llama() -> tuple[dict, dict[str, tuple[int, ...]]]:
    shapes = {"model.embed_tokens.weight": (V, C), "model.norm.weight": (C,)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (n, C) for name, n in (("q", C), ("k", 8), ("v", 8), ("o", C))}
        shapes |= {f"{at}.mlp.gate_proj.weight": (F, C), f"{at}.mlp.up_proj.weight": (F, C)}
        shapes |= {f"{at}.mlp.down_proj.weight": (C, F)}
        shapes |= {f"{at}.input_layernorm.weight": (C,), f"{at}.post_attention_layernorm.weight": (C,)}
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": V, "hidden_size": C,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": F,
        "max_position_embeddings": T, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    return config, shapes


def gpt2() -> tuple[dict, dict[str, tuple[int, ...]]]:
    shapes = {"transformer.wte.weight": (V, C), "transformer.wpe.weight": (T, C)}
    for i in range(2):
        at = f"transformer.h.{i}"
        shapes |= {f"{at}.attn.c_attn.weight": (C, 3 * C), f"{at}.attn.c_attn.bias": (3 * C,)}
        shapes |= {f"{at}.attn.c_proj.weight": (C, C), f"{at}.attn.c_proj.bias": (C,)}
        shapes |= {f"{at}.mlp.c_fc.weight": (C, 4 * C), f"{at}.mlp.c_fc.bias": (4 * C,)}
        shapes |= {f"{at}.mlp.c_proj.weight": (4 * C, C), f"{at}.mlp.c_proj.bias": (C,)}
        shapes |= {f"{at}.{norm}.{x}": (C,) for norm in ("ln_1", "ln_2") for x in ("weight", "bias")}
    shapes |= {f"transformer.ln_f.{x}": (C,) for x in ("weight", "bias")}
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": V, "n_embd": C, "n_layer": 2,
        "n_head": 4, "n_positions": T, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    return config, shapes


def bert() -> tuple[dict, dict[str, tuple[int, ...]]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in (("word", V), ("position", T), ("token_type", 2)):
        shapes[f"bert.embeddings.{name}_embeddings.weight"] = (rows, C)
    shapes |= {f"bert.embeddings.LayerNorm.{x}": (C,) for x in ("weight", "bias")}
    for i in range(2):
        at = f"bert.encoder.layer.{i}"
        linears = {f"attention.self.{name}": (C, C) for name in ("query", "key", "value")}
        linears |= {"attention.output.dense": (C, C), "intermediate.dense": (F, C), "output.dense": (C, F)}
        for name, shape in linears.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{norm}.{x}": (C,) for x in ("weight", "bias")}
    shapes |= {"bert.pooler.dense.weight": (C, C), "bert.pooler.dense.bias": (C,)}
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": V, "hidden_size": C, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": F, "max_position_embeddings": T, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip
    return config, shapes


def write_base(folder: Path, family: str, seed: int) -> None:
    """A Hugging Face folder with random weights and a tokenizer."""
    folder.mkdir(parents=True)
    config, shapes = {"llama": llama, "gpt2": gpt2, "bert": bert}[family]()
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        x = (0.2 if len(shape) == 2 else 0.05) * rng.standard_normal(shape)
        is_gain = name.endswith("weight") and len(shape) == 1
        weights[name] = (x + is_gain).astype(np.float32)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    write_tokenizer(folder, word_pieces=family == "bert")


def write_tokenizer(folder: Path, word_pieces: bool) -> None:
    """Over letters and bytes: to train one on a text gives another vocabulary each time."""
    if word_pieces:
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        letters = [mark + chr(i) for mark in ("", "##") for i in range(ord("a"), ord("z") + 1)]
        vocab = {piece: i for i, piece in enumerate([*names.values(), *letters, *WORDS])}
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
        made.normalizer = tokenizers.normalizers.BertNormalizer()
        made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        ids = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    else:
        names = {"eos_token": "<|done|>", "pad_token": "<|done|>", "chat_template": CHAT}
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        made.add_special_tokens(["<|done|>", "<|turn|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(5)
    (folder / "text.txt").write_text(TEXT)
    pairs = [{"prompt": f"what is {i}?", "answer": f"it is {i * 3 % 17}"} for i in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows = [rng.choice(8, 5) for _ in range(80)]
    lines = [f"{' '.join(WORDS[i] for i in row)},{'up' if sum(row % 2) < 3 else 'down'}\n" for row in rows]
    (folder / "rows.csv").write_text("text,label\n" + "".join(lines))


PEFT_ADAPTERS = {  # {name: (base, what the config says, {layer: (in, out)}, tensors of modules_to_save and biases)}
    "plain": ("llama", {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj"]},
              {f"model.layers.{i}.self_attn.q_proj": (C, C) for i in range(2)}, {}),
    "rslora, patterns": ("llama", {"r": 3, "lora_alpha": 7, "target_modules": ["v_proj", "down_proj"],
                         "use_rslora": True, "rank_pattern": {"down_proj": 5}, "alpha_pattern": {"v_proj": 2}},
                         {f"model.layers.{i}.{x}": n for i in range(2) for x, n in
                          (("self_attn.v_proj", (C, 8)), ("mlp.down_proj", (F, C)))}, {}),
    "saved": ("llama", {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "modules_to_save": ["model.norm"]},
              {f"model.layers.{i}.self_attn.q_proj": (C, C) for i in range(2)}, {"model.norm.weight": (C,)}),
    "Conv1D, biases": ("gpt2", {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True,
                       "bias": "lora_only"},
                       {f"transformer.h.{i}.attn.c_attn": (C, 3 * C) for i in range(2)},
                       {f"transformer.h.{i}.attn.c_attn.base_layer.bias": (3 * C,) for i in range(2)}),
    "embedding": ("gpt2", {"r": 2, "lora_alpha": 4, "target_modules": ["wte"]}, {"transformer.wte": (V, C)}, {}),
}  # fmt: skip


def write_peft(folder: Path, config: dict, layers: dict, others: dict) -> None:
    """An adapter as PEFT writes one."""
    folder.mkdir(parents=True)
    rng, tensors = np.random.default_rng(7), {}
    for name, (n_in, n_out) in layers.items():
        r = next((r for end, r in config.get("rank_pattern", {}).items() if name.endswith(end)), config["r"])
        sides = ("lora_embedding_A", "lora_embedding_B") if "wte" in name else ("lora_A.weight", "lora_B.weight")
        for side, shape in zip(sides, ((r, n_in), (n_out, r)), strict=True):
            tensors[f"base_model.model.{name}.{side}"] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
    for name, shape in others.items():
        tensors[f"base_model.model.{name}"] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
    save_file(tensors, str(folder / "adapter_model.safetensors"), {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM"} | config))


def command(words: list[str]) -> str:
    """What a command prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return f"exit {code}\n{out.getvalue()}" if code < 2 else f"exit {code}: {err.getvalue()}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record() -> dict[str, str]:
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        here = Path()
        for seed, family in enumerate(("llama", "gpt2", "bert")):
            write_base(here / family, family, seed)
        write_data(here)
        jobs: dict[str, list[str]] = {}
        steps = ["--steps", "6", "--evaluate-every", "3", "--batch", "4", "--length", "24"]
        once = ["--epochs", "1", "--batch", "8", "--length", "16"]
        more = {
            "": [],
            " dropout": ["--dropout", "0.1"],
            " accumulated": ["--accumulate", "2"],
            " shards 1": ["--shards", "1"],
        }
        for kind, words in more.items():
            for base in ("llama", "gpt2"):
                jobs[f"{base} text{kind}"] = ["--base", base, "--data", "text.txt", *steps, *words]
                jobs[f"{base} instruct{kind}"] = [
                    *("--task", "instruct", "--base", base, "--data", "pairs.jsonl"), *steps, *words, "--length", "60"
                ]  # fmt: skip
                jobs[f"{base} classify{kind}"] = [
                    *("--task", "classify", "--base", base, "--data", "rows.csv"), *once, *words
                ]  # fmt: skip
        jobs["bert classify"] = ["--task", "classify", "--base", "bert", "--data", "rows.csv", *once]
        jobs["builtin text recomputed"] = ["--data", "text.txt", *steps, "--recompute", "--targets", "q_proj,v_proj"]
        for name, words in tqdm(jobs.items(), "finetune"):
            out = name.replace(" ", "-")
            found[f"finetune {name}"] = command(["finetune", *words, "--out", out]).splitlines()[0]
            for path in sorted(Path(out).glob("adapter_*")):
                found[f"finetune {name}: {path.name}"] = sha256(path.read_bytes())
            if "classify" not in name:
                base = words[words.index("--base") + 1] if "--base" in words else "builtin"
                command(["merge", "--base", base, "--adapter", out, "--out", f"{out}-merged"])
                for path in sorted(Path(f"{out}-merged").glob("*")):
                    found[f"merge {name}: {path.name}"] = sha256(path.read_bytes())
        for name, (base, config, layers, others) in tqdm(PEFT_ADAPTERS.items(), "PEFT"):
            out = f"peft-{name.replace(' ', '-')}"
            write_peft(here / out, config, layers, others)
            command(["merge", "--base", base, "--adapter", out, "--out", f"{out}-merged"])
            found[f"PEFT {name}: merged"] = sha256(Path(f"{out}-merged/model.safetensors").read_bytes())
            if not others:
                found[f"PEFT {name}: rank"] = command(["rank", out, "--base", base, "--json"])
        found["rank two checkpoints"] = command(["rank", "llama", "peft-plain-merged", "--json"])
        command(["rank", "llama", "peft-plain-merged", "--energy", "0.9", "--out", "small"])
        found["rank --energy"] = sha256(Path("small/adapter_model.safetensors").read_bytes())
    found["verify"] = re.sub('"seconds": .*', "", command(["verify", "--json"]))
    for model in tqdm(MODELS, "count"):
        for method in METHODS:
            found[f"count {model} {method}"] = command(["count", "--model", model, "--method", method, "--json"])
    found["audit"] = command(["audit", "--json"])
    return {name: said if len(said) < 200 else sha256(said.encode()) for name, said in found.items()}


MODELS = [
    *("builtin", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-175b", "bert-base", "bert-large"),
    *("roberta-base", "roberta-large", "llama-2-7b"),
    *("llama-2-13b", "llama-2-70b", "llama-3.1-8b", "llama-3.1-70b", "mistral-7b", "smollm2-135m"),
]
METHODS = [
    *("full", "top2", "bitfit", "prefix-embed", "prefix-layer", "lora", "qlora", "lora-fa", "dora", "vera"),
    *("lora-xs", "ia3", "adapter-houlsby", "adapter-pfeiffer", "adapter-lin"),
]


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """A line for each difference."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "not there"), after.get(name, "not there")
        if old != new:
            lines.append(f"{name}: {old[:60]} -> {new[:60]}")
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "compare"):
        sys.exit(__doc__)
    file = Path(sys.argv[2])
    if sys.argv[1] == "write":
        file.write_text(json.dumps(record(), indent=1, sort_keys=True) + "\n")
    else:
        differences = compare(json.loads(file.read_text()), record())
        print("\n".join(differences) or "no difference")
        sys.exit(bool(differences))
