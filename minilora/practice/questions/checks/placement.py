"""Where adapters are put: which layers take one, at what size, and what each can change."""

import copy
import warnings
from typing import Any

import numpy as np

from .... import ops
from ....accounting import count
from ....accounting.live import count_parameters
from ....adapters.attach import attach_lora
from ....adapters.merge import merge, unmerge
from ....backend import Array
from ....models.config import Config
from ....models.families import FAMILIES
from ....models.pretrained import load_pretrained
from ....models.transformer import Transformer
from ....nn import Gradients, Parameter
from ....nn.optim import AdamW

PLACES = {
    "q, v": ["q_proj", "v_proj"],
    "q, k, v, o": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "MLP": ["gate_proj", "up_proj", "down_proj"],
    "all": "all-linear",
}


def every_dense_layer_takes_an_adapter() -> str:
    """On each of the nine kinds of layers of a llama an adapter starts at the base, changes the output, and merges."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed", "lm_head")
    whole, moved, errors = _builtin(), [], []
    base = _logits(whole)
    for name in names:
        model = copy.deepcopy(whole)
        attach_lora(model, [name], r=2, rng=0)
        assert np.array_equal(_logits(model), base)
        _randomise(model)
        adapted = _logits(model)
        moved.append(float(abs(adapted - base).max()))
        with warnings.catch_warnings(action="ignore"):  # merging unties the head
            merge(model)
        errors.append(float(abs(_logits(model) - adapted).max()))
    assert min(moved) > 0.1
    assert max(errors) < 1e-12
    return f"{len(names)} / {len(names)}: min max |Δy| = {min(moved):.2f}, merge < {1e-12:g}"


def equal_rank_is_not_equal_size() -> str:
    """At r = 8 all layers have six times the parameters of q, v; at ranks 24, 12, 8, 5 the four places are level."""
    ranks = dict(zip(PLACES, (24, 12, 8, 5), strict=True))
    level = [count("builtin", targets=PLACES[place], r=r, tokens=1).trainable for place, r in ranks.items()]
    assert max(level) < 1.08 * min(level)
    large = [count("llama-3.1-8b", targets=targets, r=8, tokens=1).trainable for targets in PLACES.values()]
    assert large[0] < large[1] < large[2] < large[3]
    assert large[3] > 6 * large[0]
    sizes = ", ".join(f"{place} {n / 1e6:.1f}" for place, n in zip(PLACES, large, strict=True))
    return f"Llama 3.1 8B, r = 8: {sizes} M; builtin, r = 24, 12, 8, 5: " + ", ".join(f"{n:,}" for n in level)


def merging_into_a_tied_table_moves_the_head() -> str:
    """ΔE acts on the look-up alone: written into the shared E it also changes the head; untied it is exact."""
    model = _builtin()
    attach_lora(model, ["embed"], r=4, rng=0)
    _randomise(model)
    adapted, adapter = _logits(model), model["embed.token"]
    naive = _builtin()
    naive["embed.token"].weight.data += adapter.delta()  # type: ignore[attr-defined]
    error = float(abs(_logits(naive) - adapted).max())
    counts = [count_parameters(model)["total"]]
    with warnings.catch_warnings(action="ignore"):  # of a head that is no longer tied
        merge(model)
    counts.append(count_parameters(model)["total"])
    exact = float(abs(_logits(model) - adapted).max())
    assert error > 1
    assert exact < 1e-12
    assert counts[1] - counts[0] == 256 * 128
    return f"E += ΔE: max |Δ| = {error:.1f}; E + ΔE, E: {exact:.0e}, + V d = {counts[1] - counts[0]:,}"


def a_convolution_is_a_matrix_over_patches() -> str:
    """A as a k × k convolution to r channels, then B as a 1 × 1: the same as one kernel W + s B A, with the stride."""
    rng = np.random.default_rng(0)
    c_in, c_out, k, r, s, stride = 3, 5, 3, 2, 2.0, 2
    W, A, B = (
        rng.standard_normal((c_out, c_in, k, k)),
        rng.standard_normal((r, c_in, k, k)),
        rng.standard_normal((c_out, r)),
    )
    x = rng.standard_normal((c_in, 9, 9))
    delta = (B @ A.reshape(r, -1)).reshape(W.shape)
    merged = _conv(x, W + s * delta, stride)
    apart = _conv(x, W, stride) + s * _conv(_conv(x, A, stride), B[:, :, None, None])
    error = float(abs(merged - apart).max())
    assert error < 1e-12
    assert np.linalg.matrix_rank(delta.reshape(c_out, -1)) == r
    B3 = rng.standard_normal((c_out, r, k, k))  # a B of k × k sees further than the kernel that it would be merged into
    reach = [_reach(lambda x, B=B: _conv(_conv(x, A), B), c_in) for B in (B[:, :, None, None], B3)]
    assert reach == [k, 2 * k - 1]
    full, thin = 256 * 256 * 9, 8 * (256 * 9 + 256)
    sizes = f"256 → 256, 3 × 3, r = 8: {thin:,} / {full:,}"
    return f"max |Δ| = {error:.0e}; B 1 × 1: {reach[0]} px, B 3 × 3: {reach[1]} px; {sizes}"


def only_q_and_k_move_the_attention_of_their_layer() -> str:
    """max |ΔP| of the adapter's layer and of the next one; a change of k that is equal for all keys does nothing."""
    rng = np.random.default_rng(0)
    T, d, heads = 12, 16, 2
    layers = [{name: rng.standard_normal((d, d)) / 4 for name in "qkvo"} for _ in range(2)]
    delta = 0.3 * rng.standard_normal((d, 2)) @ rng.standard_normal((2, d))
    x = rng.standard_normal((T, d))
    before, moved = _patterns(x, layers, heads), {}
    for name in "qkvo":
        adapted = [layers[0] | {name: layers[0][name] + delta}, layers[1]]
        moved[name] = [float(abs(a - b).max()) for a, b in zip(_patterns(x, adapted, heads), before, strict=True)]
    bias = _patterns(x, [layers[0] | {"bias": rng.standard_normal(d)}, layers[1]], heads)
    constant = float(abs(bias[0] - before[0]).max())
    assert min(moved["q"][0], moved["k"][0]) > 0.1
    assert moved["v"][0] == moved["o"][0] == 0
    assert min(after for _, after in moved.values()) > 0.01
    assert constant < 1e-12
    both = ", ".join(f"{name} {here:.2f} → {after:.2f}" for name, (here, after) in moved.items())
    return f"max |ΔP|, layer 1 → 2: {both}; k + b: {constant:.0e}"


def five_assertions_find_a_layer_left_out() -> str:
    """A right attachment passes five of five; one that leaves out all but square matrices fails the count alone."""
    passed = {}
    expected = [f"block_{i}.attention.{name}" for i in range(5) for name in PLACES["q, k, v, o"]]
    for way in ("all", "d × d"):
        model = _builtin()
        base, weights = _logits(model), {p: p.data.tobytes() for p in model.parameters()}
        shapes = {path: model[path].weight.data.shape for path in expected}  # type: ignore[attr-defined]
        targets = [path for path, (n_out, n_in) in shapes.items() if way == "all" or n_out == n_in]
        attach_lora(model, targets, r=2, rng=0)
        start = np.array_equal(_logits(model), base)
        counted = count_parameters(model)["trainable"] == sum(2 * sum(shape) for shape in shapes.values())
        grads = _gradients(model)
        moves = all((abs(dp).max() > 0) == path.endswith("lora_B") for path, dp in grads.items())
        _randomise(model)
        adapted = _logits(model)
        merge(model)
        merged = abs(_logits(model) - adapted).max() < 1e-12 < abs(adapted - base).max()
        unmerge(model)
        frozen = all(p.data.tobytes() == data for p, data in weights.items())
        passed[way] = [bool(each) for each in (start, frozen, counted, moves, merged)]
    assert passed["all"] == [True] * 5
    assert passed["d × d"] == [True, True, False, True, True]
    try:
        attach_lora(_builtin(), ["query"], rng=0)
        raise AssertionError
    except ValueError:
        pass
    return "; ".join(f"{way}: " + "".join("✗✓"[each] for each in five) for way, five in passed.items())


def the_bias_of_the_keys_learns_nothing() -> str:
    """BitFit of a GPT-2: the gradient of k's bias, a third of the fused one, is 0; a Llama has no bias to train."""
    config = Config(vocab_size=64, n_layers=2, d_model=24, n_heads=3, d_ff=48, max_length=16, dtype="float64")
    model = FAMILIES["gpt2"].build(config, 0)
    for i, (path, p) in enumerate(model.named_parameters().items()):
        p.data = p.data + 0.3 * np.random.default_rng(i).standard_normal(p.data.shape)
        p.trainable = path.endswith(".bias")
    grads = _gradients(model, np.random.default_rng(0).integers(0, 64, (3, 12)))
    q, k, v = (float(abs(db).max()) for db in grads["block_0.attention.qkv_proj.bias"].reshape(3, 24))
    assert k < 1e-12 < 1e-3 < min(q, v)
    never = 24 * 2 / sum(db.size for db in grads.values())
    try:
        count("llama-2-7b", "bitfit", tokens=1)
        raise AssertionError("a Llama 2 has biases")
    except ValueError as error:
        if "no bias" not in str(error):
            raise
    trained = count("gpt2", "bitfit", tokens=1).trainable
    assert trained == 12 * (3 + 1 + 4 + 1) * 768 + (2 * 12 + 1) * 768  # of linear layers, of norms
    return f"max |db| of q {q:.1e}, k {k:.0e}, v {v:.1e}: {never:.0%} of the biases; GPT-2 {trained:,}, Llama 2 7B 0"


def a_row_of_a_tied_table_learns_from_both_uses() -> str:
    """A row of a tied table has a gradient from both uses. With a mask on dE, weight decay still moves the others."""
    rng, V, C = np.random.default_rng(0), 12, 5
    E, ids, new = rng.standard_normal((V, C)), np.array([3, 10, 3, 11, 10, 2]), [10, 11]

    def loss(E: Array) -> Array:
        return ops.cross_entropy_forward(np.tanh(E[ids]) @ E.T, np.roll(ids, -1))[0]

    x = np.tanh(E[ids])
    dlogits = ops.cross_entropy_backward(1.0, ops.cross_entropy_forward(x @ E.T, np.roll(ids, -1))[1])
    looked_up = ops.embedding_gradients(dlogits @ E * (1 - x**2), ids, V)[new]
    dT = looked_up + dlogits[:, new].T @ x
    v, h = rng.standard_normal(dT.shape), 1e-6
    up, down = (loss(_rows_moved(E, new, e * v)) for e in (h, -h))
    slope = float(up - down) / (2 * h)
    assert np.isclose(np.sum(dT * v), slope, rtol=1e-7)
    alone = abs(np.sum(looked_up * v) / slope - 1)
    assert alone > 0.05  # as though the head were not tied
    assert np.all(dlogits.T @ x != 0)  # by the head every row has a gradient, also of tokens that are not there
    moved = {}
    for name, decay in (("mask", 0.0), ("mask, decay", 0.01)):
        table = Parameter(E.copy())
        table_grad, optimizer = np.zeros_like(E), AdamW({"E": table}, lr=0.01, weight_decay=decay)
        table_grad[new] = dT
        for _ in range(3):
            grads = Gradients()
            grads.add(table, table_grad.copy())
            optimizer.step(grads)
        moved[name] = int(np.sum(np.any(table.data != E, axis=1)))
    assert moved == {"mask": len(new), "mask, decay": V}
    rows, whole = (
        2 * 4096 * 2,
        2 * 32002 * 4096,
    )  # m and v of two rows, and of the table, of a Llama 2 with two new tokens
    both = f"dT: {np.sum(dT * v) / slope - 1:.0e}, without the head {alone:.2f}"
    return f"{both}; rows moved of {V}: {moved}; m, v: {rows:,} / {whole:,} numbers"


def _builtin() -> Transformer:
    return load_pretrained("builtin", dtype="float64")


def _ids() -> Array:
    return np.random.default_rng(0).integers(0, 256, (2, 8))


def _logits(model: Transformer) -> Array:
    return model.forward(_ids())[0]


def _randomise(model: Transformer) -> None:
    """Give the adapters an A and a B that are not zero."""
    for i, parameter in enumerate(model.trainable_parameters().values()):
        parameter.data = np.random.default_rng(i).standard_normal(parameter.data.shape) / 5


def _rows_moved(E: Array, rows: list[int], by: Array) -> Array:
    moved = E.copy()
    moved[rows] += by
    return moved


def _gradients(model: Transformer, ids: Array | None = None) -> dict[str, Array]:
    ids = _ids() if ids is None else ids
    logits, cache = model.forward(ids)
    grads = Gradients()
    model.backward(ops.cross_entropy_backward(1.0, ops.cross_entropy_forward(logits, ids)[1]), cache, grads)
    return {path: grads[parameter] for path, parameter in model.trainable_parameters().items()}


def _conv(x: Array, W: Array, stride: int = 1) -> Array:
    """x (c_in, height, width), W (c_out, c_in, k, k), without padding."""
    k = W.shape[-1]
    n = (x.shape[1] - k) // stride + 1
    y = np.zeros((len(W), n, n))
    for i in range(n):
        for j in range(n):
            y[:, i, j] = np.tensordot(W, x[:, i * stride : i * stride + k, j * stride : j * stride + k], 3)
    return y


def _reach(convolve: Any, c_in: int) -> int:
    """How wide the square of pixels is that an output sees."""
    seen = []
    for j in range(9):
        x = np.zeros((c_in, 9, 9))
        x[:, :, j] = 1
        seen.append(bool(abs(convolve(x)[:, 0, 0]).max() > 1e-12))
    return sum(seen)


def _patterns(x: Array, layers: list[dict[str, Array]], heads: int) -> list[Array]:
    """The softmax of each layer (heads, T, T)."""
    found = []
    for layer in layers:
        q, k, v = ((x @ layer[name].T).reshape(len(x), heads, -1).swapaxes(0, 1) for name in "qkv")
        if "bias" in layer:
            k = k + layer["bias"].reshape(heads, 1, -1)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        P = np.exp(scores - scores.max(axis=-1, keepdims=True))
        P /= P.sum(axis=-1, keepdims=True)
        found.append(P)
        x = x + (P @ v).swapaxes(0, 1).reshape(x.shape) @ layer["o"].T
    return found
