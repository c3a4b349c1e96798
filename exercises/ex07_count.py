"""07 · Count

A decoder is described by a dict, config. All its weights are these:

    embedding   vocab_size rows of d_model numbers; where "positions" is True,
                max_length rows more, one for each position
    n_layers    blocks: a norm, attention, a norm, an MLP
    attention   q_proj, k_proj, v_proj and o_proj. Queries have n_heads heads,
                keys and values n_kv_heads; every head is d_model / n_heads
                wide. o_proj maps the heads of the queries back to d_model.
                Where "fused" is True, one matrix qkv_proj stands for the
                first three, with their rows one below another
    MLP         up_proj to d_ff, and down_proj back; where "gated" is True,
                also gate_proj, of the shape of up_proj
    after them  one more norm, and the head, d_model to vocab_size, without a
                bias. Where "tied" is True, its matrix is the embedding's own
    norm        a gain of d_model numbers
    "biases"    "none"; "qkv": q_proj, k_proj and v_proj have one; "all":
                every linear layer of the blocks has one, and every norm
    "dtype"     of these weights: "float32", "float16" or "bfloat16"

LoRA of rank r is put on the layers whose names are in the list targets, in
every block. Each gets an A (r, in) and a B (out, r). In a fused model the name
"qkv_proj" means the whole matrix; "q_proj", "k_proj" and "v_proj" mean its
parts, each with an A and a B of its own. No target names a layer that the model
lacks, as gate_proj where "gated" is False. Only A and B are trained. They are
in float32 beside a model of any dtype, as in PEFT. Return a dict of whole
numbers:

    total        parameters of the model, without what LoRA adds
    trained      parameters that are trained
    file_bytes   bytes of the adapter's tensors in a file (its header, which
                 holds their names, is not counted)

One model by hand: vocab_size 10, n_layers 1, d_model 4, n_heads 2,
n_kv_heads 2, d_ff 6, gated, not tied, no positions, no biases.
total = 40 + (4 + 4 · 16 + 4 + 3 · 24) + 4 + 40 = 228. q_proj and v_proj with
r = 2: trained = 2 · (8 + 8) = 32.
"""


def count(config, targets, r):
    """Return {"total": ..., "trained": ..., "file_bytes": ...}.

    >>> sizes = {"vocab_size": 10, "n_layers": 1, "d_model": 4, "n_heads": 2, "n_kv_heads": 2, "d_ff": 6}
    >>> kind = {"max_length": 8, "positions": False, "fused": False, "gated": True, "tied": False}
    >>> count(sizes | kind | {"biases": "none", "dtype": "bfloat16"}, ["q_proj", "v_proj"], 2)
    {'total': 228, 'trained': 32, 'file_bytes': 128}
    """
    raise NotImplementedError
