"""The work of a case, by PyTorch with plain modules, eager or compiled, and by Transformers with PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .cases import BITSANDBYTES, NEW, PROMPT, SEED, Case, Job
from .ours import BATCH, FUSED, LR

GPT2_DROPOUTS = "attn_pdrop", "embd_pdrop", "resid_pdrop"  # 0.1 unless a config says otherwise, and ours does not
BERT_DROPOUTS = "attention_probs_dropout_prob", "hidden_dropout_prob"
DROPOUTS = {"tiny": GPT2_DROPOUTS, "small": GPT2_DROPOUTS, "gpt2": GPT2_DROPOUTS, "minilm": BERT_DROPOUTS}


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, r: int, rng: np.random.Generator) -> None:
        super().__init__()
        n_in, n_out = base.in_features, base.out_features
        A = rng.uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)  # the very numbers that attach_lora draws
        self.base, self.s = base, 16 / r
        self.A = nn.Parameter(torch.tensor(A, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros(n_out, r))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.s * F.linear(F.linear(x, self.A), self.B)


class Cache:
    """Keys and values of the tokens so far, in place."""

    def __init__(self, heads: int, D: int, capacity: int) -> None:
        self.k, self.v = torch.empty(1, heads, capacity, D), torch.empty(1, heads, capacity, D)
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class Block(nn.Module):
    """Pre-norm, GELU in the tanh form; one matrix for q, k and v, or three."""

    def __init__(self, C: int, heads: int, split: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv = nn.ModuleList(nn.Linear(C, C) for _ in "qkv") if split else nn.Linear(C, 3 * C)
        self.o, self.up, self.down = nn.Linear(C, C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        B, T, C = x.shape
        h = self.ln_1(x)
        parts = [p(h) for p in self.qkv] if isinstance(self.qkv, nn.ModuleList) else self.qkv(h).chunk(3, dim=-1)
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in parts)
        if cache is not None:
            k, v = cache.extend(k, v)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        x = x + self.o(o.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, case: Case, split: bool) -> None:
        super().__init__()
        shape = case.shape
        C, self.heads = shape["d_model"], shape["n_heads"]
        self.wte, self.wpe = nn.Embedding(shape["vocab_size"], C), nn.Embedding(shape["max_length"], C)
        self.blocks = nn.ModuleList(Block(C, self.heads, split) for _ in range(shape["n_layers"]))
        self.ln_f = nn.LayerNorm(C)

    def forward(self, ids: Tensor, caches: list[Cache] | None = None) -> Tensor:
        start = caches[0].length if caches else 0
        x = self.wte(ids) + self.wpe.weight[start : start + ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None)
        return F.linear(self.ln_f(x), self.wte.weight)


def load_gpt2(case: Case, split: bool, folder: Path) -> GPT2:
    """From the names and shapes of a Hugging Face folder: Conv1D keeps its matrices as (in, out)."""
    tensors = {name.removeprefix("transformer."): x for name, x in load_file(folder / "model.safetensors").items()}
    with torch.device("meta"):
        model = GPT2(case, split)
    state: dict[str, Tensor] = {}
    for name, x in tensors.items():
        name = name.removeprefix("h.")
        if name[0].isdecimal():
            name = "blocks." + name
            for old, new in (("attn.c_attn", "qkv"), ("attn.c_proj", "o"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down")):
                if old in name:
                    name, x = name.replace(old, new), x.T.contiguous() if x.ndim == 2 else x
        if split and ".qkv." in name:
            state |= {name.replace("qkv", f"qkv.{i}"): part.clone() for i, part in enumerate(x.chunk(3))}
        else:
            state[name] = x
    model.load_state_dict(state, assign=True)
    return model


def attach(model: GPT2, case: Case, targets: str) -> None:
    model.requires_grad_(False)
    rng = np.random.default_rng(SEED)
    block: Any
    for block in model.blocks:
        if targets == "q_proj,v_proj":
            for i in (0, 2):
                block.qkv[i] = LoRA(block.qkv[i], case.rank, rng)
        else:  # all-linear, in the order in which attach_lora comes to them
            for name in ("qkv", "o", "up", "down"):
                setattr(block, name, LoRA(getattr(block, name), case.rank, rng))


def torch_model(case: Case, targets: str, folder: Path) -> Any:
    model = load_gpt2(case, case.measure == "lora" and targets not in FUSED, folder / "base")
    if case.measure == "lora":
        attach(model, case, targets)
    return model


def import_peft() -> tuple[Any, Any]:
    """transformers and peft, which take a second."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it says on every start what it lacks
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers, peft


def quantisation(base: str) -> dict[str, Any]:
    """What from_pretrained is told: a dtype, and for bitsandbytes what our models/quantized.py does. Embeddings, head
    and classifier stay in float32, and float32 is computed with."""
    if base not in BITSANDBYTES:
        return {"dtype": getattr(torch, base or "float32")}
    from transformers import BitsAndBytesConfig

    torch._dynamo.config.disable = True  # bitsandbytes compiles a decoder anew for every shape
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    four["bnb_4bit_use_double_quant"] = base == "nf4-dq"
    kept = {"llm_int8_skip_modules": ["classifier", "pooler", "lm_head"]}
    config = BitsAndBytesConfig(**(({"load_in_8bit": True} if base == "int8" else four) | kept))
    return {"dtype": torch.float32, "quantization_config": config}


def peft_model(case: Case, base: str, folder: Path) -> Any:
    transformers, peft = import_peft()
    kind = "SequenceClassification" if case.size == "minilm" else "CausalLM"
    load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    model = load(folder / "base", **quantisation(base), **dict.fromkeys(DROPOUTS.get(case.size, ()), 0.0))
    if case.adapts:
        model = peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    return model


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` by torch.compile, made by the first call, so that the time of that call has all that compiling takes,
    imports too. A part that cannot be compiled is an error (`fullgraph`).

    Raises RuntimeError where torch.compile is switched off, which otherwise would run the function as it is.
    """
    made: Callable[..., Tensor] | None = None

    def call(*inputs: Any) -> Tensor:
        nonlocal made
        if made is not None:
            return made(*inputs)
        from torch._dynamo.utils import counters

        made, before = torch.compile(function, fullgraph=True), counters["stats"]["unique_graphs"]
        found = made(*inputs)
        if counters["stats"]["unique_graphs"] == before:
            raise RuntimeError("torch.compile compiled nothing: unset TORCHDYNAMO_DISABLE")
        return found

    return call


def job(case: Case, library: str, targets: str, folder: Path, base: str = "") -> Job:
    torch.set_num_threads(case.cores)
    plain, compiles = library.startswith("torch"), library == "torch compiled"
    model = torch_model(case, targets, folder) if plain else peft_model(case, base, folder)
    model = model.train(case.adapts or case.measure == "full")
    if case.device != "cpu":
        model = model.to(case.device)
    batch = {name: x.to(case.device) for name, x in load_file(folder / BATCH).items()}
    if case.measure == "generate":
        prompt = batch["ids"][:1, :PROMPT]
        return on_device(case, generation(model, prompt, compiles) if plain else hub_generation(model, prompt))
    logits = (lambda ids: model(ids)) if plain else (lambda ids: model(input_ids=ids, use_cache=False).logits)
    if case.size == "minilm":
        logits = lambda ids: model(input_ids=ids).logits  # noqa: E731
    if case.measure == "forward":
        return on_device(case, forward(compiled(logits) if compiles else logits, batch["ids"]))
    return on_device(case, step(model, logits, batch, compiles))


def on_device(case: Case, made: Job) -> Job:
    def event() -> Callable[[], bool]:
        large, end = torch.ones(8192, 8192, device="cuda"), torch.cuda.Event()
        for _ in range(20):
            large @ large
        end.record()
        return end.query

    return made if case.device == "cpu" else made._replace(peak=torch.cuda.max_memory_reserved, event=event)


def forward(logits: Callable[[Tensor], Tensor], ids: Tensor) -> Job:
    last: Tensor | None = None

    @torch.inference_mode()
    def run() -> None:
        nonlocal last
        last = logits(ids)

    return Job(run, lambda: 0.0 if last is None else float((last[:, -1] ** 2).sum()))


def step(model: nn.Module, logits: Callable[[Tensor], Tensor], batch: dict[str, Tensor], compiles: bool) -> Job:
    """Compiled, model and loss are one graph with one backward, and AdamW is PyTorch's fused kernel.

    That is the fastest form of those tried on one core, or within the spread of it. Time beside eager's, PyTorch 2.13,
    medians of 7 rounds on a machine with other load:

                                         LoRA: tiny   1 x 64   small   GPT-2    full: tiny   1 x 64   small
        the model                              0.95     0.86    0.98    0.95
        model and loss                         0.91     0.83    0.98                  0.96     0.91    0.96
        model and loss, AdamW fused            0.91     0.74    0.99    0.93          0.92     0.68    0.98
        model and loss, AdamW compiled         0.92     0.74    1.00    0.95          0.93     0.67    0.93

    A compiled AdamW is two graphs (PyTorch breaks it itself), and takes 2 s more; `max_autotune` is as fast. Of the
    forward, compiled 0.94 to 0.98 of eager's time, `freezing` and `no_grad` make no difference.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LR, weight_decay=0.0, fused=compiles or None)
    loss = torch.zeros(())

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(ids).flatten(0, -2), targets.flatten())

    forward = compiled(loss_of) if compiles else loss_of

    def run() -> None:
        nonlocal loss
        loss = forward(batch["ids"], batch["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def wait() -> float:
        learned[0].detach().cpu()
        return float(loss.detach())

    return Job(run, wait)


def generation(model: GPT2, prompt: Tensor, compiles: bool) -> Job:
    """Compiled, there is a graph for the prompt and one for a token, whose number of keys is a variable: the second
    token makes it one, and later ones compile nothing anew."""
    logits, found = compiled(model) if compiles else model, list[int]()

    @torch.inference_mode()
    def run() -> None:
        found.clear()
        D = model.wte.weight.shape[1] // model.heads
        with torch.device(prompt.device):
            caches = [Cache(model.heads, D, PROMPT + NEW) for _ in model.blocks]
        ids = prompt
        for _ in range(NEW):
            ids = logits(ids, caches)[:, -1].argmax(dim=-1, keepdim=True)
            found.append(int(ids))

    return Job(run, lambda: list(found))


def hub_generation(model: Any, prompt: Tensor) -> Job:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    found: list[int] = []

    def run() -> None:
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
        found[:] = ids[0, PROMPT:].tolist()

    return Job(run, lambda: list(found))
