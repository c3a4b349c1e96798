"""08 · The memory ledger

Which bytes does a training step hold? config is a dict as in exercise 07 (but
for the dtype), and "tokens" is the number of tokens in the batch. layers,
vectors and parameters, below, read off it what the model has. A number takes 4
bytes in "float32", 2 in "bfloat16" and "float16".

    method "full"    every parameter is trained, in dtype
    "lora"           the model is frozen, in dtype. Every linear layer of the
                     blocks, all of layers(config), gets an A (r, in) and a
                     B (out, r), which are trained, in float32
    "qlora"          the same, but the matrices of those layers are in 4 bits
                     a number, with one float32 for every 64 of a matrix (64
                     divides its size); other matrices are in dtype, and
                     vectors, that is biases and gains of norms, in float32
    optimizer        "sgd" has no state, "momentum" the velocity, "adamw" two
                     moments, always in float32

    ledger returns the bytes of

    weights          the model, A and B
    copy             mixed precision: whatever is trained in 2 bytes has a
                     float32 copy in addition, which the optimizer updates
    gradients        of what is trained, in the dtype that it has in weights
    optimizer        its state
    activations      here only what the linear layers of the blocks keep of the
                     forward for the gradients of their own weights, A and B;
                     in dtype. An array that several of them read is kept once:
                     q, k and v read the same one, gate and up too. No dropout

builtin predicts a live step of the built-in model, which is then measured:
BUILTIN, in float32, LoRA of rank r on the same layers, AdamW, one sequence of
the length `tokens`.

    live_gradients   bytes of the gradients
    live_state       bytes of AdamW's state
    live_weights     the model, A and B, in MiB
    live_cache       bytes that the forward keeps with LoRA minus those it keeps
                     in full fine-tuning; it may be negative. In full
                     fine-tuning the embedding keeps the ids (8 bytes each), the
                     head its input; outside linear layers all else is the same

By hand: the model of exercise 07 with 228 parameters, 3 tokens, "full",
"float32", "sgd": weights 912, copy 0, gradients 912, optimizer 0, and
activations 3 · (4 + 4 + 4 + 6) · 4 = 216.
"""

BUILTIN = {
    "vocab_size": 256, "n_layers": 5, "d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_ff": 344,
    "positions": False, "fused": False, "gated": True, "tied": True, "biases": "none",
}  # fmt: skip


def layers(config):
    """Given: {name: (out, in)} of the linear layers of one block."""
    C, F, K = config["d_model"], config["d_ff"], config["n_kv_heads"] * config["d_model"] // config["n_heads"]
    shapes = {"qkv_proj": (C + 2 * K, C)} if config["fused"] else {"q_proj": (C, C), "k_proj": (K, C), "v_proj": (K, C)}
    shapes |= {"o_proj": (C, C), "up_proj": (F, C), "down_proj": (C, F)}
    return shapes | {"gate_proj": (F, C)} if config["gated"] else shapes


def vectors(config):
    """Given: how many numbers are in vectors. The linear layers and norms have biases, or none has."""
    C, bias = config["d_model"], int(config["biases"] == "all")
    norms = (2 * config["n_layers"] + 1) * (1 + bias) * C
    return norms + config["n_layers"] * sum(bias * out for out, _ in layers(config).values())


def parameters(config):
    """Given: how many numbers the whole model has, in vectors and matrices."""
    V = config["vocab_size"]
    rows = V + (0 if config["tied"] else V) + (config["max_length"] if config["positions"] else 0)
    matrices = config["n_layers"] * sum(out * n_in for out, n_in in layers(config).values())
    return vectors(config) + matrices + rows * config["d_model"]


def ledger(config, r, method, dtype, optimizer):
    """Return {"weights": ..., "copy": ..., "gradients": ..., "optimizer": ..., "activations": ...}.

    >>> sizes = {"vocab_size": 10, "n_layers": 1, "d_model": 4, "n_heads": 2, "n_kv_heads": 2, "d_ff": 6, "tokens": 3}
    >>> kind = {"positions": False, "fused": False, "gated": True, "tied": False, "biases": "none"}
    >>> ledger(sizes | kind, 2, "full", "float32", "sgd")
    {'weights': 912, 'copy': 0, 'gradients': 912, 'optimizer': 0, 'activations': 216}
    """
    raise NotImplementedError


def builtin(r, tokens):
    """Return {"live_gradients": ..., "live_state": ..., "live_weights": ..., "live_cache": ...}."""
    raise NotImplementedError
