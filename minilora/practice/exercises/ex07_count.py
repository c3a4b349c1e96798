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
    ### BEGIN SOLUTION
    V, L, C, F = (config[key] for key in ("vocab_size", "n_layers", "d_model", "d_ff"))
    K = config["n_kv_heads"] * C // config["n_heads"]  # rows of k_proj and of v_proj

    shapes = {"q_proj": (C, C), "k_proj": (K, C), "v_proj": (K, C), "o_proj": (C, C)}
    shapes |= {"up_proj": (F, C), "down_proj": (C, F)} | ({"gate_proj": (F, C)} if config["gated"] else {})
    biased = {"none": (), "qkv": ("q_proj", "k_proj", "v_proj"), "all": shapes}[config["biases"]]
    norm = 2 * C if config["biases"] == "all" else C

    block = 2 * norm + sum(out * n_in for out, n_in in shapes.values()) + sum(shapes[name][0] for name in biased)
    total = V * C + L * block + norm
    total += config["max_length"] * C if config["positions"] else 0
    total += 0 if config["tied"] else C * V

    shapes["qkv_proj"] = C + 2 * K, C
    trained = L * sum(r * (n_in + out) for out, n_in in (shapes[name] for name in targets))
    return {"total": total, "trained": trained, "file_bytes": 4 * trained}
    ### END SOLUTION


### THE CHECK

from ...accounting import count as counted
from ...models.config import Config
from ...models.families import FAMILIES
from ..exercise import Exercise, Viva
from ..parts import Value

SIZES = "vocab_size", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "max_length", "tied"
LLAMA = {"positions": False, "fused": False, "gated": True, "biases": "none"}
QWEN2 = LLAMA | {"biases": "qkv"}
GPT2 = {"positions": True, "fused": True, "gated": False, "biases": "all"}
# what kind of model, tied, query heads for one of the keys, dtype, targets
CASES = [
    (LLAMA, False, 2, "bfloat16", ["q_proj", "v_proj"]),
    (GPT2, True, 1, "float32", ["q_proj", "v_proj"]),
    (QWEN2, True, 3, "float16", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    (GPT2, False, 1, "float16", ["v_proj", "o_proj", "down_proj"]),
    (LLAMA, True, 4, "float32", ["v_proj", "gate_proj", "up_proj", "down_proj"]),
    (GPT2, False, 1, "bfloat16", ["qkv_proj", "up_proj"]),
]


def draw(rng, i):
    kind, tied, group, dtype, targets = CASES[i]
    kv_heads, width = int(rng.integers(2, 5)), 2 * int(rng.integers(3, 9))
    heads = group * kv_heads
    sizes = {
        "vocab_size": int(rng.integers(900, 1000)),
        "n_layers": int(rng.integers(2, 7)),
        "d_model": heads * width,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "d_ff": 2 * heads * width + int(rng.integers(7, 40)),
        "max_length": int(rng.integers(600, 700)),
    }
    return {"config": sizes | {"tied": tied, "dtype": dtype} | kind, "targets": targets, "r": int(rng.integers(2, 6))}


def truth(config, targets, r):
    family = "gpt2" if config["positions"] else "qwen2" if config["biases"] == "qkv" else "llama"
    model = FAMILIES[family].build(Config(**{key: config[key] for key in SIZES}), None)
    account = counted(model, "lora", targets=targets, r=r, dtype=config["dtype"])
    return account.total, account.trainable, account.trained_bytes()


part = Value(count, "total trained file_bytes", truth=truth, draw=draw)


def linears(config):
    """(out, in) of the linear layers of a block, the parts of a fused one apart."""
    C, F = config["d_model"], config["d_ff"]
    K = config["n_kv_heads"] * C // config["n_heads"]
    attention = {"q_proj": (C, C), "k_proj": (K, C), "v_proj": (K, C), "o_proj": (C, C)}
    return attention | {"up_proj": (F, C), "down_proj": (C, F)} | ({"gate_proj": (F, C)} if config["gated"] else {})


def biases(config):
    """In the linear layers of a block, and in one norm."""
    rows = {name: out for name, (out, _) in linears(config).items()}
    some = sum(rows[name] for name in ("q_proj", "k_proj", "v_proj"))
    return {"none": (0, 0), "qkv": (some, 0), "all": (sum(rows.values()), config["d_model"])}[config["biases"]]


def more(config, targets, r, total=0, trained=0):
    """The right answer but for so many parameters."""
    right = count(config, targets, r)
    wrong = right["trained"] + trained
    return {"total": right["total"] + total, "trained": wrong, "file_bytes": 4 * wrong}


def with_trained(config, targets, r, each):
    """The right answer, but with each(name, out, in) parameters trained for a target."""
    C = config["d_model"]
    shapes = linears(config) | {"qkv_proj": (3 * C, C)}  # where it is a target, keys have as many heads as queries
    trained = config["n_layers"] * sum(each(name, *shapes[name]) for name in targets)
    return count(config, targets, r) | {"trained": trained, "file_bytes": 4 * trained}


@part.mistake(
    "{it} counts k_proj and v_proj as wide as q_proj: grouped queries are left out",
    "How many heads do the keys have, and how many rows does that make?",
)
def keys_as_wide_as_queries(config, targets, r):
    return count(config | {"n_kv_heads": config["n_heads"]}, targets, r)


@part.mistake(
    "{it} counts a tied head a second time",
    "How many matrices of vocab_size rows are in memory where the head is tied?",
)
def tied_head_twice(config, targets, r):
    return count(config | {"tied": False}, targets, r)


@part.mistake(
    "{it} never counts the head, also where it is not tied",
    "Which matrix turns the last hidden state into logits?",
)
def head_left_out(config, targets, r):
    return count(config | {"tied": True}, targets, r)


@part.mistake("{it} leaves out the biases", "Which layers add a vector after the product?")
def biases_left_out(config, targets, r):
    return count(config | {"biases": "none"}, targets, r)


@part.mistake("{it} leaves out the biases of the norms", "What do the norms add after the gain, where biases is 'all'?")
def biases_of_norms_left_out(config, targets, r):
    return more(config, targets, r, -(2 * config["n_layers"] + 1) * biases(config)[1])


@part.mistake(
    "{it} counts the biases of the norms alone: those of the linear layers are missing",
    "How long is the bias of a layer whose matrix is (out, in)?",
)
def biases_of_linears_left_out(config, targets, r):
    return more(config, targets, r, -config["n_layers"] * biases(config)[0])


@part.mistake(
    "{it} gives every linear layer a bias of in numbers, not of out",
    "To what is the bias added, and how long is that?",
)
def biases_as_long_as_the_input(config, targets, r):
    named = {"none": (), "qkv": ("q_proj", "k_proj", "v_proj"), "all": linears(config)}[config["biases"]]
    lengths = sum(linears(config)[name][1] for name in named)
    return more(config, targets, r, config["n_layers"] * (lengths - biases(config)[0]))


@part.mistake("{it} leaves out the norms", "Which arrays does a norm have, and how many norms are there?")
def norms_left_out(config, targets, r):
    return more(config, targets, r, -(2 * config["n_layers"] + 1) * (config["d_model"] + biases(config)[1]))


@part.mistake(
    "{it} counts matrices alone: neither norms nor biases", "Which arrays of the model are vectors, not matrices?"
)
def matrices_alone(config, targets, r):
    return norms_left_out(config | {"biases": "none"}, targets, r)


@part.mistake("{it} has two norms a block, and not the one after the last block", "What lies between block and head?")
def last_norm_left_out(config, targets, r):
    return more(config, targets, r, -config["d_model"] - biases(config)[1])


@part.mistake("{it} counts one norm a block", "What stands before attention, and what before the MLP?")
def one_norm_a_block(config, targets, r):
    return more(config, targets, r, -config["n_layers"] * (config["d_model"] + biases(config)[1]))


@part.mistake("{it} leaves out the table of positions", "Where does a model without rotary positions hold them?")
def positions_left_out(config, targets, r):
    return count(config | {"positions": False}, targets, r)


@part.mistake("{it} has a table of positions in every model", "Which key of config says that there is one?")
def positions_always(config, targets, r):
    return count(config | {"positions": True}, targets, r)


@part.mistake("{it} leaves out gate_proj", "How many matrices does a gated MLP have?")
def gate_left_out(config, targets, r):
    return more(config, targets, r, -config["n_layers"] * config["d_model"] * config["d_ff"] * config["gated"])


@part.mistake("{it} has a gate_proj in every model", "Which key of config says that the MLP is gated?")
def gate_always(config, targets, r):
    missing = config["d_ff"] * (config["d_model"] + (config["biases"] == "all"))
    return more(config, targets, r, 0 if config["gated"] else config["n_layers"] * missing)


@part.mistake("{it} counts a single block", "How often is a block there?")
def one_block(config, targets, r):
    return count(config | {"n_layers": 1}, targets, r)


@part.mistake("{it} contains what LoRA adds, and must not", "Which model is it whose parameters total counts?")
def adapter_in_the_total(config, targets, r):
    return more(config, targets, r, count(config, targets, r)["trained"])


@part.mistake(
    "{it} multiplies r by in · out, as if the whole matrix were there r times",
    "What are the shapes of A and B, and how many numbers do both have?",
)
def product_of_the_widths(config, targets, r):
    return with_trained(config, targets, r, lambda name, out, n_in: r * out * n_in)


@part.mistake("{it} counts A alone", "Which of the two matrices is missing?")
def one_factor(config, targets, r):
    return with_trained(config, targets, r, lambda name, out, n_in: r * n_in)


@part.mistake("{it} counts B alone", "Which of the two matrices is missing?")
def other_factor(config, targets, r):
    return with_trained(config, targets, r, lambda name, out, n_in: r * out)


@part.mistake(
    "{it} is 2 r d_model for every target, as if each mapped d_model to d_model",
    "Which of the targets are not square?",
)
def all_targets_square(config, targets, r):
    return with_trained(config, targets, r, lambda name, out, n_in: 2 * r * config["d_model"])


@part.mistake(
    "{it} counts square matrices alone: targets with in ≠ out have no adapter",
    "For which of the targets are A and B of different widths?",
)
def square_targets_alone(config, targets, r):
    return with_trained(config, targets, r, lambda name, out, n_in: r * (n_in + out) * (n_in == out))


@part.mistake(
    "{it} gives the parts of a fused qkv_proj one A and one B together",
    "q_proj and v_proj are named, not qkv_proj: how many pairs of A and B is that?",
)
def fused_parts_as_one(config, targets, r):
    parts = {"q_proj", "k_proj", "v_proj"} & set(targets)
    if not (config["fused"] and parts):
        return count(config, targets, r)
    return count(config, [*sorted(set(targets) - parts), "qkv_proj"], r)


@part.mistake(
    "{it} lets the parts of a fused qkv_proj share one A", "Does each of the named parts have an A of its own?"
)
def one_A_for_the_parts(config, targets, r):
    parts = {"q_proj", "k_proj", "v_proj"} & set(targets)
    shared = config["n_layers"] * r * config["d_model"] * (len(parts) - 1)
    return more(config, targets, r, trained=-shared if config["fused"] and parts else 0)


@part.mistake(
    "{it} takes qkv_proj for three layers, each with an A",
    "qkv_proj is named as a whole: of how many rows is the matrix that B A must fit?",
)
def whole_as_three(config, targets, r):
    return with_trained(config, targets, r, lambda name, out, n_in: r * (out + n_in * (3 if name == "qkv_proj" else 1)))


@part.mistake(
    "{it} contains the biases of the targets, which stay frozen here", "Which arrays does the optimizer receive?"
)
def biases_trained(config, targets, r):
    rows = {name: out for name, (out, _) in linears(config).items()} | {"qkv_proj": 3 * config["d_model"]}
    named = {"none": (), "qkv": ("q_proj", "k_proj", "v_proj"), "all": rows}[config["biases"]]
    return more(config, targets, r, trained=config["n_layers"] * sum(rows[n] for n in targets if n in named))


@part.mistake(
    "{it} takes the dtype of the model, and the adapter is in float32 whatever that is",
    "In which dtype are A and B trained and saved?",
)
def file_in_the_dtype_of_the_model(config, targets, r):
    right = count(config, targets, r)
    return right | {"file_bytes": right["trained"] * (4 if config["dtype"] == "float32" else 2)}


@part.mistake("{it} is the number of parameters, not of bytes", "How many bytes does a float32 take?")
def numbers_for_bytes(config, targets, r):
    right = count(config, targets, r)
    return right | {"file_bytes": right["trained"]}


@part.mistake(
    "{it} contains the weights of the model, which are in no adapter's file",
    "What must somebody have already who downloads the adapter?",
)
def model_in_the_file(config, targets, r):
    right = count(config, targets, r)
    each = 4 if config["dtype"] == "float32" else 2
    return right | {"file_bytes": 4 * right["trained"] + each * right["total"]}


EXERCISE = Exercise(
    title="Count",
    kind="write",
    minutes=25,
    difficulty=2,
    needs=["01"],
    parts=[part],
    hints=(
        "Write a table first: the name of each matrix of a block, and its (out, in). Both counts can be read off it.",
        "Go through the statement's lines again and ask of each key of config which arrays it adds, widens or takes "
        "away. Vectors count too.",
    ),
    viva=[
        Viva(
            "Llama 3.1 8B has 32 query heads and 8 for keys and values. Which of the adapters on q and v is smaller, "
            "and by how much?",
            "v's: its B has a quarter of the rows, 1,024 instead of 4,096, and A is the same. So r · 5,120 against "
            "r · 8,192.",
            "They are the same size, since both read the same hidden state.",
        ),
        Viva(
            "A 7B model needs 14 GB on disk, and its adapter 16 MB. What does the adapter's file not hold, so that "
            "it cannot be used alone?",
            "The base's weights, and which revision of them it was trained on; the tokenizer; a new head, unless it "
            "was saved too. The scale stands in the config beside it, not among the tensors.",
            "Nothing: the model is compressed into it.",
        ),
    ],
    asks=["E1", "E7", "A7", "H5"],
)
