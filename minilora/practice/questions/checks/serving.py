"""What an adapter costs when a model is served, and what a server may keep."""

from typing import Any

import numpy as np

from .... import ops
from ....accounting import count, executed_flops
from ....adapters.lora import LoRALinear
from ....adapters.merge import merge
from ....models.config import Config
from ....models.families.llama import llama
from ....models.transformer import Transformer
from ....nn import KVCache, Linear, Module, Parameter, Pass


def merged_costs_what_the_base_costs() -> str:
    """FLOPs that ran: merged 1 × the base; not merged 1 + r (in + out)/(in · out), in three products, not one."""
    rng = np.random.default_rng(0)
    model: Any = Module()
    model.layer = Linear(rng.standard_normal((128, 256)))
    model.x = Parameter(rng.standard_normal((32, 256)))

    def flops() -> int:
        return executed_flops(model, lambda: model.layer.forward(model.x.data))["products"]

    base = flops()
    model.layer = LoRALinear(model.layer, r=8, rng=0)
    beside = flops()
    merge(model)
    merged = flops()
    assert merged == base == 2 * 32 * 256 * 128
    assert beside / base == 1 + 8 * (256 + 128) / (256 * 128)
    wide = 16 * (4096 + 4096) / 4096**2
    return f"256 → 128, r = 8: {merged / base:.2f} ×, {beside / base:.3f} ×; 4096 → 4096, r = 16: +{wide:.1%} FLOPs"


def a_mixed_batch_needs_no_product_BA() -> str:
    """Rows grouped by adapter: one by one's y, in a loop over the adapters; -1 is the base; W is multiplied once."""
    rng = np.random.default_rng(0)
    N, n, r, K = 40, 64, 4, 3
    x, W = rng.standard_normal((N, n)), rng.standard_normal((n, n))
    A, B, s = rng.standard_normal((K, r, n)), rng.standard_normal((K, n, r)), np.array([2.0, 0.5, 1.0])
    which = rng.integers(-1, K, N)
    one_by_one = np.stack([x[i] @ (W + (which[i] >= 0) * s[which[i]] * B[which[i]] @ A[which[i]]).T for i in range(N)])
    y = x @ W.T  # the base once, for all
    for a in range(K):
        mine = np.flatnonzero(which == a)
        y[mine] += ops.lora_forward(x[mine], A[a], B[a], s[a])[0]
    h = (x @ A.reshape(K * r, n).T).reshape(N, K, r) * (which[:, None] == np.arange(K))[:, :, None] * s[:, None]
    stacked = x @ W.T + h.reshape(N, K * r) @ B.transpose(0, 2, 1).reshape(K * r, n)
    assert np.allclose(y, one_by_one)
    assert np.allclose(stacked, one_by_one)
    assert np.allclose(y[which < 0], x[which < 0] @ W.T)
    adapted = int(np.sum(which >= 0))
    grouped, formed = 2 * adapted * r * 2 * n, K * 2 * n * n * r + 2 * adapted * n * n
    assert grouped < formed / 10
    return f"{N} rows, {K} adapters: ‖error‖ {abs(y - one_by_one).max():.0e}; FLOPs: {grouped:,} ≪ BA: {formed:,}"


def a_kept_cache_belongs_to_the_old_adapter() -> str:
    """Token by token = the whole text; after a swap the cache is stale, unless no k or v depends on the adapter. The
    library refuses it; a copy that says it is the new adapter's shows what would come out."""
    ids, errors = np.random.default_rng(0).integers(0, 50, (1, 24)), []
    for blocks, target in ((2, "v_proj"), (2, "q_proj"), (1, "q_proj")):
        model, cache = _model(blocks), KVCache(24)
        _swap(model, target, 1)
        step = [model.forward(ids[:, t : t + 1], run=Pass(kv_cache=cache))[0] for t in range(23)]
        assert np.allclose(np.concatenate(step, axis=1), model.forward(ids[:, :23])[0])
        _swap(model, target, 2)
        try:
            model.forward(ids[:, 23:], run=Pass(kv_cache=cache))
            refused = False
        except ValueError:
            refused = True
        assert refused
        stale = Pass(kv_cache=cache.take([0], model.modules(), None))
        kept, true = (model.forward(x, run=run)[0][0, -1] for x, run in ((ids[:, 23:], stale), (ids, Pass())))
        errors.append(float(np.linalg.norm(kept - true) / np.linalg.norm(true)))
    assert min(errors[:2]) > 0.01
    assert errors[2] < 1e-12
    return "1 token after a swap: v {:.2f}, q {:.2f} (2 blocks); q {:.0e} (1 block)".format(*errors)


def a_hundred_adapters_are_smaller_than_the_base() -> str:
    """Llama-2-7B, q and v, r = 8, float32: an adapter's file, and a hundred of them against one base in bfloat16."""
    account = count("llama-2-7b", targets=["q_proj", "v_proj"], r=8, dtype="bfloat16")
    base, adapter = 2 * account.total, account.adapter_bytes
    assert account.trainable == 32 * 2 * 8 * (4096 + 4096)
    assert 4 * account.trainable < adapter < 4 * account.trainable + 50_000
    assert 100 * adapter < base
    return (
        f"{account.trainable:,} × 4 B = {adapter / 1e6:.1f} MB; 100: {100 * adapter / 1e9:.2f} GB; "
        f"base {base / 1e9:.2f} GB; 100 × base {base / 1e7:,.0f} GB"
    )


def _model(blocks: int) -> Transformer:
    config = Config(vocab_size=50, dtype="float64", d_model=16, n_layers=blocks, n_heads=2, d_ff=32, max_length=24)
    model = llama(config, rng=0)
    for parameter in model.parameters():
        if parameter.data.ndim == 2:
            parameter.data = 10 * parameter.data
    return model


def _swap(model: Transformer, target: str, seed: int) -> None:
    """Put an adapter with B ≠ 0 on every layer of this name, in the place of the one before."""
    for path, layer in list(model.named_modules()):
        if path.endswith(target):
            layer = getattr(layer, "base", layer)
            adapter = model[path] = LoRALinear(layer, r=4, rng=seed)
            adapter.lora_B.data = np.random.default_rng(seed).standard_normal(adapter.lora_B.data.shape)
