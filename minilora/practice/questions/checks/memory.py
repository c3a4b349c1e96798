"""What is counted: parameters, bytes, FLOPs, and what is in a file."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .... import accounting, nn, ops
from ....accounting import Account, count
from ....accounting.live import CountedArray
from ....accounting.named import NAMED
from ....adapters.attach import attach_lora
from ....adapters.lora import LoRALinear
from ....adapters.peft.reading import load_adapter
from ....adapters.peft.writing import save_adapter
from ....models.pretrained import load_pretrained
from ....models.transformer import Transformer


def every_layer_adds_r_times_in_plus_out() -> str:
    """Σ r (in + out) by hand is what is counted, with grouped queries and fused q, k, v; three near misses are not."""
    d, kv, F, L, r = 4096, 1024, 14336, 32, 8  # Llama 3.1 8B
    shapes = [(d, d), (d, kv), (d, kv), (d, d), (d, F), (d, F), (F, d)]
    true = L * sum(r * (n_in + n_out) for n_in, n_out in shapes)
    misses = {
        "Σ r in·out": L * sum(r * n_in * n_out for n_in, n_out in shapes),
        "d × d": L * 2 * r * 2 * d,
        "k, v = q": L * r * (8 * d + 3 * (d + F)),
    }
    counted = count("llama-3.1-8b", targets="all-linear", r=r, tokens=1).trainable
    assert counted == true
    assert true not in misses.values()
    whole, parts = (count("gpt2", targets=t, r=r, tokens=1).trainable for t in ("qkv_proj", ["q_proj", "v_proj"]))
    assert whole == 12 * 4 * r * 768 == parts
    three = count("gpt2", targets=["q_proj", "k_proj", "v_proj"], r=r, tokens=1).trainable
    assert three == 12 * 6 * r * 768
    tied = NAMED["smollm2-135m"]
    totals = [count(tied | {"tie_word_embeddings": t}, tokens=1).total for t in (True, False)]
    assert totals[1] - totals[0] == tied["vocab_size"] * tied["hidden_size"]
    wrong = ", ".join(f"{name}: {value:,}" for name, value in misses.items())
    return f"Σ r (in + out) = {counted:,} (✗ {wrong}); GPT-2 c_attn: {whole:,} = 4 r d L, q, k, v: {three:,} = 6 r d L"


def sixteen_bytes_go_with_a_trained_number_and_two_with_a_frozen_one() -> str:
    """Llama 2 7B in mixed precision, one sequence of 512: full fine-tuning, LoRA and QLoRA, item by item."""
    rows = {}
    for method, dtype in (("full", "bfloat16"), ("lora", "bfloat16"), ("qlora", "nf4-dq")):
        account = _llama(method, dtype=dtype, r=16, tokens=512)
        memory, trained = account.memory(), account.trainable
        base = memory["weights"] - 4 * trained * (method != "full")
        # W or A, B; gradient; float32 copy of what is trained in 2 bytes; m and v
        each = 2 + 2 + 4 + 8 if method == "full" else 4 + 4 + 0 + 8
        state = each * trained
        rows[method] = [0 if method == "full" else base, state, memory["activations"]]
    gb = {method: [n / 1e9 for n in row] for method, row in rows.items()}
    (_, full, kept), (lora_base, lora, lora_kept), (qlora_base, qlora, _) = gb.values()
    assert 107 < full < 109
    assert 13 < lora_base < 14
    assert lora == qlora < 0.7
    assert 3.8 < qlora_base < 3.9
    assert abs(kept / lora_kept - 1) < 0.01
    return "; ".join(
        f"{method}: {base:.2f} + {state:.2f} + {act:.2f} = {base + state + act:.1f} GB"
        for method, (base, state, act) in gb.items()
    )


def the_saving_of_bytes_stays_below_four() -> str:
    """In one dtype the bytes of weights, gradients, m and v fall to a quarter at best, of longer sequences by less."""
    ratios = []
    for tokens in (512, 2048, 4096):
        full, lora = (_llama(method, tokens=tokens) for method in ("full", "lora"))
        ratios.append(sum(full.memory().values()) / sum(lora.memory().values()))
        counts = full.trainable / lora.trainable
    assert 4 > ratios[0] > ratios[1] > ratios[2] > 2
    assert counts > 300
    return f"÷{counts:.0f} parameters; bytes: T = 512: ÷{ratios[0]:.2f}, 2048: ÷{ratios[1]:.2f}, 4096: ÷{ratios[2]:.2f}"


def one_product_of_three_is_spared() -> str:
    """Executed and counted: (4 in·out + 6 r (in + out)) / 6 in·out, so at most 1.5 times fewer FLOPs."""
    n, r = 96, 4
    executed = [_executed(layer) for layer in (_square(n), LoRALinear(_square(n), r=r, rng=0))]
    assert executed == [50 * 6 * n * n, 50 * (4 * n * n + 6 * r * 2 * n)]
    ratios = [
        _step(_llama("lora", recompute=again)) / _step(_llama("full", recompute=again)) for again in (False, True)
    ]
    assert 0.66 < ratios[0] < 0.7
    assert 0.74 < ratios[1] < 0.77
    even = accounting.break_even_rank(4096, 4096)
    assert round(even) == 683
    layer_ratio = executed[1] / executed[0]
    return (
        f"{n} × {n}, r = {r}: {layer_ratio:.3f}; Llama 2 7B, r = 8: {ratios[0]:.3f}, + recompute {ratios[1]:.3f}; "
        f"= 1 at r = {even:.0f} (4096)"
    )


def adapters_keep_what_trained_layers_keep() -> str:
    """The bytes that forward keeps, live: all layers by LoRA as much as in full, q and v less, A frozen less still."""
    kept = {}
    for name, targets in (
        ("full", []),
        ("all", "all-linear"),
        ("q, v", ["q_proj", "v_proj"]),
        ("A frozen", "all-linear"),
    ):
        model = load_pretrained("builtin")
        if targets:
            attach_lora(model, targets, r=8, rng=0)
        for path, parameter in model.trainable_parameters().items():
            parameter.trainable = name != "A frozen" or not path.endswith("lora_A")
        ids = np.random.default_rng(0).integers(0, 256, (2, 32))
        kept[name] = accounting.nbytes(model.forward(ids)[1])
        assert kept[name] == sum(row.nbytes for row in accounting.ledger(model, 2, 32, loss=False))
    assert kept["all"] > kept["full"] > kept["q, v"]
    assert kept["A frozen"] < kept["all"]
    return ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in kept.items())


def scores_cost_the_same_with_an_adapter() -> str:
    """q kᵀ and P v hold no weight: with LoRA their FLOPs are the same, × 4 for 2 T; all else is × 2."""
    attention, totals = {}, {}
    for method in ("full", "lora"):
        parts = [_llama(method, tokens=T).flops()[0] for T in (128, 256)]
        attention[method] = [part.attention for part in parts]
        totals[method] = [part.products for part in parts]
        assert parts[1].linear == 2 * parts[0].linear
    assert attention["lora"] == attention["full"]
    assert attention["full"][1] == 4 * attention["full"][0]
    ratio = totals["lora"][1] / totals["full"][1]
    assert 1 < ratio < 1.01
    small = NAMED["llama-2-7b"] | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    costs = count(small, "full", tokens=128).costs.forward  # T = 2 d
    scores = sum(p.flops for p in costs if p.kind == "attention")
    projections = sum(p.flops for p in costs if p.kind == "linear" and ".attention." in str(p.layer))
    assert scores == projections
    same = attention["lora"][1] / attention["full"][1]
    return f"q kᵀ, P v: ×{same:g}; forward, T = 256: ×{ratio:.4f}; q kᵀ + P v = q, k, v, o: T = 2 d"


def a_file_has_A_and_B_and_its_config_the_scale() -> str:
    """The length of the file to the byte; in it A and B alone; α doubled in the config doubles what is added."""
    with tempfile.TemporaryDirectory() as above:
        folder, model = Path(above) / "adapter", load_pretrained("builtin")
        attach_lora(model, r=8, alpha=16, rng=0)
        for path, parameter in model.trainable_parameters().items():
            parameter.data = np.random.default_rng(len(path)).standard_normal(parameter.data.shape).astype("f") / 20
        save_adapter(model, folder)
        data = (folder / "adapter_model.safetensors").read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        del header["__metadata__"]
        assert {name.split(".")[-2] for name in header} == {"lora_A", "lora_B"}
        config = json.loads((folder / "adapter_config.json").read_text())
        deltas = []
        for alpha in (16, 32):
            (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
            loaded = load_pretrained("builtin")
            load_adapter(loaded, folder)
            deltas.append(loaded["block_0.attention.q_proj"].delta())  # type: ignore[attr-defined]
        files = sorted(os.listdir(folder))
    assert np.allclose(deltas[1], 2 * deltas[0])
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    numbers, length = count("builtin", r=8).trainable, count("builtin", r=8).adapter_bytes
    peft = json.dumps(
        {"__metadata__": {"format": "pt"}} | header, separators=(",", ":")
    )  # ours adds a hash of the base
    assert length == 8 + math.ceil(len(peft) / 8) * 8 + 4 * numbers
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + 4 * numbers
    return f"4 · {numbers:,} + {length - 4 * numbers:,} = {length:,} B: {len(header)} × A, B; config: α 16 → 32: ΔW × 2"


def merged_is_as_large_as_the_base_and_unmerged_larger() -> str:
    """Bytes of weights, and FLOPs of a token, of Llama 2 7B: six ways to run it."""
    llama = NAMED["llama-2-7b"]
    half = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 5504}
    lora, nf4 = (
        _llama(method, dtype=dtype, r=16, tokens=1) for method, dtype in (("lora", "bfloat16"), ("qlora", "nf4-dq"))
    )
    base, narrow, small = (_plain(llama | other) for other in ({}, {"intermediate_size": 5504}, half))
    added = 4 * lora.trainable
    assert lora.memory()["weights"] == base.memory()["weights"] + added
    ways = {
        "base": (base.memory()["weights"], _forward(base)),
        "LoRA merged": (lora.memory()["weights"] - added, _forward(base)),
        "LoRA": (lora.memory()["weights"], _forward(lora)),
        "NF4": (nf4.memory()["weights"] - added, _forward(base)),
        "F / 2": (narrow.memory()["weights"], _forward(narrow)),
        "d / 2": (small.memory()["weights"], _forward(small)),
    }
    assert ways["LoRA merged"] == ways["base"]
    assert min(ours - theirs for ours, theirs in zip(ways["LoRA"], ways["base"], strict=True)) > 0
    assert max(ways[name][0] for name in ("NF4", "F / 2", "d / 2")) < 0.7 * ways["base"][0]
    return "; ".join(f"{name} {size / 1e9:.2f} GB, {work / 1e9:.2f} GFLOP" for name, (size, work) in ways.items())


def a_7B_fits_four_gibibytes_in_four_bits_only() -> str:
    """Llama 2 7B in 16, 8 and 4 bits; what then is left of 4 GiB, in tokens of KV cache; and two ways to train."""
    limit, base = 2**32, _plain(NAMED["llama-2-7b"])
    small = _llama("qlora", dtype="nf4-dq", r=8, targets=["q_proj", "v_proj"], recompute=True)
    large = _llama("qlora", dtype="nf4-dq", r=16, recompute=True)
    nf4 = small.memory()["weights"] - 4 * small.trainable
    sizes = [2 * base.total, base.total, nf4]
    assert sizes[0] > sizes[1] > limit > sizes[2]
    token = 2 * 32 * 4096 * 2  # k and v of 32 layers in 2 bytes
    left = (limit - nf4 - 2 * large.trainable) // token
    assert 500 < left < 800
    steps = [sum(account.memory().values()) for account in (small, large)]
    assert steps[0] < limit < steps[1]
    gb = [f"{size / 1e9:.2f}" for size in (*sizes, *steps)]
    return (
        f"16, 8, 4 bits: {gb[0]}, {gb[1]}, {gb[2]} GB; 4 GiB = {limit / 1e9:.2f}: {left} tokens; "
        f"QLoRA, T = 512: q, v, r = 8: {gb[3]}, all, r = 16: {gb[4]} GB"
    )


def recomputing_needs_a_path_to_the_parameters() -> str:
    """Blocks run again give equal gradients. Were a block entered only if its input needs dx, none would get any."""
    model = load_pretrained("builtin", dtype="float64")
    attach_lora(model, rng=0)
    for i, parameter in enumerate(model.trainable_parameters().values()):
        parameter.data = np.random.default_rng(i).standard_normal(parameter.data.shape) / 10
    plain = _gradients(model)
    nn.recompute(model)
    again = _gradients(model)
    assert len(plain) == len(again) == 20
    difference = max(float(abs(plain[p] - again[p]).max()) for p in plain)
    assert difference < 1e-12
    reached = {}
    for name, marked, by_parameters in (("x", False, False), ("x marked", True, False), ("x or θ", False, True)):
        needed, count_of = marked or model["embed"].trainable, 0
        for block in (layer for path, layer in model.layers.items() if path.startswith("block_")):
            needed = needed or (by_parameters and block.trainable)
            count_of += needed and block.trainable
        reached[name] = int(count_of)
    assert list(reached.values()) == [0, 5, 5]
    return f"max |Δ| = {difference:g}; " + ", ".join(f"{name}: {n} / 5" for name, n in reached.items())


def _square(n: int) -> nn.Linear:
    return nn.Linear(np.eye(n))


def _executed(layer: nn.Module) -> int:
    """FLOPs of forward and backward over 50 rows."""

    def run() -> None:
        y, cache = layer.forward(np.ones((50, layer.weight.data.shape[1])).view(CountedArray))  # type: ignore[attr-defined]
        layer.backward(y, cache, nn.Gradients())

    return accounting.executed_flops(layer, run)["products"]


def _llama(method: str, *, dtype: str = "bfloat16", targets: Any = "all-linear", r: int = 8, **options: Any) -> Account:
    targets = None if method == "full" else targets
    return count("llama-2-7b", method, targets=targets, r=r, dtype=dtype, **({"tokens": 512} | options))


def _plain(config: dict[str, Any]) -> Account:
    return count(config, "full", tokens=1, dtype="bfloat16")


def _forward(account: Account) -> int:
    return account.flops()[0].products


def _step(account: Account) -> int:
    return sum(part.products for part in account.flops())


def _gradients(model: Transformer) -> dict[Any, Any]:
    ids = np.random.default_rng(0).integers(0, 256, (2, 8))
    logits, cache = model.forward(ids)
    _, loss = ops.cross_entropy_forward(logits, ids)
    grads = nn.Gradients()
    model.backward(ops.cross_entropy_backward(1.0, loss), cache, grads)
    return {p: grads[p] for p in model.trainable_parameters().values()}
