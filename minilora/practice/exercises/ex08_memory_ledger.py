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
    ### BEGIN SOLUTION
    shapes, L = layers(config).values(), config["n_layers"]
    model, matrices = parameters(config), L * sum(out * n_in for out, n_in in shapes)
    low_rank = 0 if method == "full" else L * sum(r * (out + n_in) for out, n_in in shapes)

    size = 4 if dtype == "float32" else 2
    trained, trained_size = (model, size) if method == "full" else (low_rank, 4)
    held = size * model
    if method == "qlora":
        rest = model - matrices - vectors(config)
        held = matrices // 2 + matrices // 64 * 4 + size * rest + 4 * vectors(config)

    x = 3 * config["d_model"] + config["d_ff"]  # into q, k, v; into o; into gate and up; into down
    h = 0 if method == "full" else r * len(shapes)
    return {
        "weights": held + 4 * low_rank,
        "copy": 4 * trained if trained_size < 4 else 0,
        "gradients": trained_size * trained,
        "optimizer": {"sgd": 0, "momentum": 1, "adamw": 2}[optimizer] * 4 * trained,
        "activations": L * config["tokens"] * (x + h) * size,
    }
    ### END SOLUTION


def builtin(r, tokens):
    """Return {"live_gradients": ..., "live_state": ..., "live_weights": ..., "live_cache": ...}."""
    ### BEGIN SOLUTION
    lora = ledger(BUILTIN | {"tokens": tokens}, r, "lora", "float32", "adamw")
    full = ledger(BUILTIN | {"tokens": tokens}, r, "full", "float32", "adamw")
    ids, head = 8 * tokens, 4 * tokens * BUILTIN["d_model"]
    return {
        "live_gradients": lora["gradients"],
        "live_state": lora["optimizer"],
        "live_weights": lora["weights"] / 2**20,
        "live_cache": lora["activations"] - full["activations"] - ids - head,
    }
    ### END SOLUTION


### THE CHECK

import copy
import functools

import numpy as np

from ...accounting import count, memory, nbytes
from ...adapters.attach import attach_lora
from ...models.config import Config
from ...models.families import FAMILIES
from ...models.pretrained import load_pretrained
from ...models.sources import BUILTIN as FOLDER
from ...nn import Gradients, Parameter
from ...nn.optim import SGD, AdamW
from ..exercise import Exercise, Viva
from ..parts import Value

SIZES = "vocab_size", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "max_length", "tied"
LLAMA = {"positions": False, "fused": False, "gated": True, "biases": "none"}
GPT2 = {"positions": True, "fused": True, "gated": False, "biases": "all"}
# what kind of model, tied, query heads for one of the keys, method, dtype, optimizer
CASES = [
    (LLAMA, False, 2, "full", "float32", "adamw"),
    (LLAMA, True, 4, "lora", "bfloat16", "adamw"),
    (LLAMA, False, 2, "qlora", "bfloat16", "adamw"),
    (GPT2, True, 1, "full", "bfloat16", "momentum"),
    (GPT2, False, 1, "lora", "float32", "sgd"),
    (LLAMA, True, 2, "full", "float16", "adamw"),
]


def draw(rng, i):
    kind, tied, group, method, dtype, optimizer = CASES[i]
    heads, width = group * int(rng.integers(2, 5)), 64 * int(rng.integers(1, 4))
    sizes = {
        "vocab_size": int(rng.integers(900, 1000)),
        "n_layers": int(rng.integers(2, 7)),
        "d_model": heads * width,
        "n_heads": heads,
        "n_kv_heads": heads // group,
        "d_ff": 2 * heads * width + int(rng.integers(7, 40)),
        "max_length": int(rng.integers(600, 700)),
        "tokens": int(rng.integers(300, 500)),
    }
    r = int(rng.integers(2, 9))
    return {"config": sizes | {"tied": tied} | kind, "r": r, "method": method, "dtype": dtype, "optimizer": optimizer}


STATE = {"sgd": SGD, "momentum": functools.partial(SGD, momentum=0.9), "adamw": AdamW}


def truth(config, r, method, dtype, optimizer):
    family = "gpt2" if config["positions"] else "llama"
    model = FAMILIES[family].build(Config(**{key: config[key] for key in SIZES}), None)
    account = count(
        model, method, targets=None if method == "full" else "all-linear", r=r, tokens=config["tokens"],
        dtype="nf4" if method == "qlora" else dtype,
    )  # fmt: skip
    one = STATE[optimizer]({"a number": Parameter(np.zeros(1, np.float32))})
    kept = [array for array in account.ledger() if array.layer.endswith("_proj") and array.what in ("x", "h")]
    mixed = method == "full" and dtype != "float32"
    return {
        "weights": account.memory()["weights"],
        "copy": account.trainable * 4 if mixed else 0,
        "gradients": account.memory()["gradients"],
        "optimizer": account.trainable * sum(array.nbytes for array in one.state.values()),
        "activations": sum(array.nbytes for array in kept),
    }


def draw_live(rng, i):
    return {"r": 1 + i + int(rng.integers(0, 3)), "tokens": 8 + 2 * i + int(rng.integers(0, 2))}


@functools.cache
def loaded():
    return load_pretrained(FOLDER)


@functools.cache
def measured(r, tokens):
    ids, model, grads = np.arange(tokens, dtype=np.int64)[None], copy.deepcopy(loaded()), Gradients()
    attach_lora(model, "all-linear", r=r, rng=0)
    logits, cache = model.forward(ids)
    model.backward(np.ones_like(logits), cache, grads)
    optimizer = AdamW(model.trainable_parameters())
    optimizer.step(grads)
    lora = memory(model, cache, grads, optimizer)
    _, full = loaded().forward(ids)
    return {
        "live_gradients": lora["gradients"],
        "live_state": lora["optimizer"],
        "live_weights": lora["weights"] / 2**20,
        "live_cache": lora["cache"] - nbytes(full),
    }


books = Value(ledger, "weights copy gradients optimizer activations", truth=truth, draw=draw)
step = Value(builtin, "live_gradients live_state live_weights live_cache", truth=measured, draw=draw_live)


def bytes_of(dtype):
    return 4 if dtype == "float32" else 2


def matrices(config):
    return config["n_layers"] * sum(out * n_in for out, n_in in layers(config).values())


def low_rank(config, r):
    return config["n_layers"] * sum(r * (out + n_in) for out, n_in in layers(config).values())


def without_low_rank(config, r, *rest):
    """The bytes of the model alone, as it is held."""
    return ledger(config, r, *rest)["weights"] - (0 if rest[0] == "full" else 4 * low_rank(config, r))


@books.mistake(
    "{it} leaves out the model's own weights: they are frozen, but still in memory",
    "Which matrices does the forward multiply by?",
)
def frozen_weights_left_out(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right if method == "full" else right | {"weights": 4 * low_rank(config, r)}


@books.mistake("{it} leaves out A and B", "What is in memory besides the frozen model?")
def A_and_B_left_out(config, r, method, dtype, optimizer):
    given = config, r, method, dtype, optimizer
    return ledger(*given) | {"weights": without_low_rank(*given)}


@books.mistake(
    "{it} has A and B in the dtype of the model: here they are in float32 whatever that is",
    "In which dtype are A and B, so that small steps are not rounded away?",
)
def A_and_B_in_the_dtype_of_the_model(config, r, method, dtype, optimizer):
    given = config, r, method, dtype, optimizer
    added = 0 if method == "full" else bytes_of(dtype) * low_rank(config, r)
    return ledger(*given) | {"weights": without_low_rank(*given) + added}


@books.mistake(
    "{it} has the gradients of A and B in the dtype of the model: A and B are in float32",
    "In which dtype is the array whose gradient it is?",
)
def gradients_in_the_dtype_of_the_model(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right if method == "full" else right | {"gradients": bytes_of(dtype) * low_rank(config, r)}


@books.mistake(
    "{it} contains the float32 copy, which has a line of its own", "In which line of the ledger does the copy stand?"
)
def copy_among_the_weights(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"weights": right["weights"] + right["copy"]}


@books.mistake(
    "{it} holds the model of QLoRA in two bytes a number, as LoRA's",
    "How many bits does a weight of the blocks take in QLoRA?",
)
def no_four_bits(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"weights": ledger(config, r, "lora", dtype, optimizer)["weights"]} if method == "qlora" else right


@books.mistake(
    "{it} leaves out the scales of the 4-bit blocks",
    "By what is a 4-bit level multiplied when W is decoded?",
)
def scales_left_out(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"weights": right["weights"] - (matrices(config) // 16 if method == "qlora" else 0)}


@books.mistake(
    "{it} has the scales of the 4-bit blocks in two bytes: they are in float32", "In which dtype are the scales?"
)
def scales_in_two_bytes(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"weights": right["weights"] - (matrices(config) // 32 if method == "qlora" else 0)}


@books.mistake(
    "{it} has the whole model in 4 bits, embedding and norms too",
    "Which arrays of the model are matrices of its blocks, and which are not?",
)
def everything_in_four_bits(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    whole = 9 * parameters(config) / 16 + 4 * low_rank(config, r)
    return right | {"weights": whole} if method == "qlora" else right


@books.mistake(
    "{it} has embedding and head in 4 bits too",
    "Which arrays of the model are matrices of its blocks, and which are not?",
)
def embedding_in_four_bits(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    rest = parameters(config) - vectors(config) - matrices(config)
    less = bytes_of(dtype) * rest - 9 * rest / 16
    return right | {"weights": right["weights"] - less} if method == "qlora" else right


@books.mistake(
    "{it} has embedding and head in float32: only vectors are, other matrices are in dtype",
    "Which arrays does the statement of QLoRA keep in float32?",
)
def embedding_in_float32(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    more = (4 - bytes_of(dtype)) * (parameters(config) - vectors(config) - matrices(config))
    return right | {"weights": right["weights"] + more} if method == "qlora" else right


@books.mistake(
    "{it} has the gains of the norms in the dtype of the model: where matrices are in 4 bits, vectors are in float32",
    "Which arrays of the model are not matrices, and in which dtype does QLoRA hold those?",
)
def vectors_in_the_dtype_of_the_model(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    less = (4 - bytes_of(dtype)) * vectors(config)
    return right | {"weights": right["weights"] - less} if method == "qlora" else right


@books.mistake(
    "{it} is left out: there is a float32 copy where weights in two bytes are trained (where training is in bfloat16 "
    "throughout there is none, but here the precision is mixed)",
    "What happens in bfloat16 to a step that is a thousandth of its weight?",
)
def no_copy(config, r, method, dtype, optimizer):
    return ledger(config, r, method, dtype, optimizer) | {"copy": 0}


@books.mistake("{it} is there in float32 too", "Of what would it be a copy, where the weights are in float32?")
def copy_of_float32(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"copy": 4 * parameters(config) if method == "full" else 0}


@books.mistake(
    "{it} is there with LoRA too, of the frozen weights",
    "Does the optimizer ever write to a frozen weight?",
)
def copy_of_frozen_weights(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"copy": 0 if dtype == "float32" else 4 * parameters(config)}


@books.mistake(
    "{it} is there with LoRA too, of A and B, which are in float32 already", "In which dtype are A and B held?"
)
def copy_of_A_and_B(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right if method == "full" or dtype == "float32" else right | {"copy": 4 * low_rank(config, r)}


@books.mistake("{it} is of every parameter: frozen ones have none", "Of which arrays is a gradient ever made?")
def gradients_of_frozen_weights(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    frozen = 0 if method == "full" else bytes_of(dtype) * parameters(config)
    return right | {"gradients": right["gradients"] + frozen}


@books.mistake(
    "{it} is in float32 where the weights that are trained have two bytes",
    "In which dtype is the gradient of a weight in bfloat16?",
)
def gradients_in_float32(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"gradients": 4 * parameters(config)} if method == "full" else right


@books.mistake("{it} has one moment for AdamW, and it keeps two", "Which two averages does Adam divide?")
def one_moment(config, r, method, dtype, optimizer):
    return ledger(config, r, method, dtype, "momentum" if optimizer == "adamw" else optimizer)


@books.mistake(
    "{it} has two states whatever the optimizer is", "What does plain SGD remember of the step before, and momentum?"
)
def always_two_states(config, r, method, dtype, optimizer):
    return ledger(config, r, method, dtype, "adamw")


@books.mistake("{it} has a velocity for plain SGD", "What does plain SGD remember of the step before?")
def velocity_of_sgd(config, r, method, dtype, optimizer):
    return ledger(config, r, method, dtype, "momentum" if optimizer == "sgd" else optimizer)


@books.mistake("{it} is in the dtype of the model: all state is in float32", "In which dtype is Adam's v kept?")
def state_in_the_dtype_of_the_model(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"optimizer": right["optimizer"] * bytes_of(dtype) // 4}


@books.mistake(
    "{it} is of every parameter: what is frozen is never updated, and has no state",
    "Which arrays does the optimizer receive?",
)
def state_of_frozen_weights(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    full = ledger(config, r, "full", dtype, optimizer)
    return right | {"optimizer": right["optimizer"] + (0 if method == "full" else full["optimizer"])}


@books.mistake(
    "{it} contains the float32 copy: 12 bytes a parameter for AdamW. The copy has a line of its own",
    "Which three float32 arrays make up 12 bytes, and which of them are the optimizer's state?",
)
def copy_in_the_state(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"optimizer": right["optimizer"] + right["copy"]}


@books.mistake(
    "{it} leaves out x with LoRA, as if freezing W saved it",
    "dA is a product of dh and of what? Where does that come from?",
)
def inputs_saved_by_lora(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    h = config["n_layers"] * config["tokens"] * bytes_of(dtype) * r * len(layers(config))
    return right if method == "full" else right | {"activations": h}


@books.mistake(
    "{it} keeps nothing with LoRA: freezing W spares dW, not what dA and dB need",
    "Write dA and dB down: which arrays of the forward stand in them?",
)
def nothing_kept_by_lora(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right if method == "full" else right | {"activations": 0}


@books.mistake("{it} leaves out what dB needs", "dB is a product of dy and of what?")
def h_left_out(config, r, method, dtype, optimizer):
    full = ledger(config, r, "full", dtype, optimizer)
    return ledger(config, r, method, dtype, optimizer) | {"activations": full["activations"]}


@books.mistake(
    "{it} has one x Aᵀ for all the layers that read the same x: each has an A of its own",
    "Is x Aᵀ of q the same array as x Aᵀ of v?",
)
def h_once_an_input(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    once = config["n_layers"] * config["tokens"] * bytes_of(dtype) * r * (len(layers(config)) - 4)
    return right | {"activations": right["activations"] - (0 if method == "full" else once)}


@books.mistake(
    "{it} counts the same x again for every layer that reads it",
    "How many different arrays enter the linear layers of a block?",
)
def inputs_counted_by_layer(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    again = sum(n_in for _, n_in in layers(config).values()) - 3 * config["d_model"] - config["d_ff"]
    each = config["n_layers"] * config["tokens"] * bytes_of(dtype)
    return right | {"activations": right["activations"] + each * again}


@books.mistake(
    "{it} counts outputs of the layers, and the gradient of W needs its input", "dW is a product of dy and of what?"
)
def outputs_kept(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    more = sum(out for out, _ in layers(config).values()) - 3 * config["d_model"] - config["d_ff"]
    return right | {
        "activations": right["activations"] + config["n_layers"] * config["tokens"] * bytes_of(dtype) * more
    }


@books.mistake("{it} is in float32 in every model", "In which dtype does the forward compute?")
def activations_in_float32(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"activations": right["activations"] * 4 // bytes_of(dtype)}


@books.mistake("{it} is that of a single block", "Does a block's cache go before the next block runs?")
def activations_of_one_block(config, r, method, dtype, optimizer):
    right = ledger(config, r, method, dtype, optimizer)
    return right | {"activations": right["activations"] // config["n_layers"]}


def full_of(tokens):
    return ledger(BUILTIN | {"tokens": tokens}, 1, "full", "float32", "adamw")


@step.mistake("{it} is of every parameter: frozen ones have none", "Of which arrays is a gradient ever made?")
def live_gradients_of_all(r, tokens):
    return builtin(r, tokens) | {"live_gradients": full_of(tokens)["gradients"]}


@step.mistake(
    "{it} is of every parameter: what is frozen is never updated, and has no state",
    "Which arrays does the optimizer receive?",
)
def live_state_of_all(r, tokens):
    return builtin(r, tokens) | {"live_state": full_of(tokens)["optimizer"]}


@step.mistake("{it} has one moment for AdamW, and it keeps two", "Which two averages does Adam divide?")
def live_state_of_one_moment(r, tokens):
    right = builtin(r, tokens)
    return right | {"live_state": right["live_state"] // 2}


@step.mistake("{it} is in MB, of 10⁶ bytes, not in MiB, of 2²⁰", "How many bytes are a MiB?")
def megabytes(r, tokens):
    right = builtin(r, tokens)
    return right | {"live_weights": right["live_weights"] * 2**20 / 1e6}


@step.mistake("{it} leaves out A and B", "What is in memory besides the frozen model?")
def live_weights_without_lora(r, tokens):
    return builtin(r, tokens) | {"live_weights": full_of(tokens)["weights"] / 2**20}


@step.mistake(
    "{it} leaves out the model's own weights: they are frozen, but still in memory",
    "Which matrices does the forward multiply by?",
)
def live_weights_of_lora_alone(r, tokens):
    return builtin(r, tokens) | {"live_weights": 4 * low_rank(BUILTIN, r) / 2**20}


@step.mistake(
    "{it} is zero, as if LoRA changed no activations: but it adds some, and others are no longer needed",
    "What does LoRA keep that full fine-tuning does not, and the other way round?",
)
def no_difference(r, tokens):
    return builtin(r, tokens) | {"live_cache": 0}


@step.mistake(
    "{it} has what LoRA adds, and not what a frozen head and embedding need not keep",
    "What is kept for the gradient of the tied embedding, and who needs it when that is frozen?",
)
def only_what_lora_adds(r, tokens):
    right = builtin(r, tokens)
    return right | {"live_cache": right["live_cache"] + tokens * (8 + 4 * BUILTIN["d_model"])}


@step.mistake(
    "{it} has what a frozen head and embedding need not keep, and not what LoRA adds",
    "dB is a product of dy and of what?",
)
def only_what_freezing_saves(r, tokens):
    return builtin(r, tokens) | {"live_cache": -tokens * (8 + 4 * BUILTIN["d_model"])}


@step.mistake(
    "{it} leaves out the inputs of the adapted layers, as if LoRA spared them: but dA needs them",
    "dA is a product of dh and of what? Where does that come from?",
)
def inputs_taken_for_saved(r, tokens):
    right = builtin(r, tokens)
    return right | {"live_cache": right["live_cache"] - full_of(tokens)["activations"]}


@step.mistake("{it} has the opposite sign", "Which of the two is subtracted from which?")
def full_less_lora(r, tokens):
    right = builtin(r, tokens)
    return right | {"live_cache": -right["live_cache"]}


EXERCISE = Exercise(
    title="The memory ledger",
    kind="predict, then run",
    minutes=40,
    difficulty=3,
    needs=["07"],
    parts=[books, step],
    hints=(
        "Settle three things first: which numbers are trained, how many bytes each of them has, and how many bytes "
        "each number of the model has. Four of the five lines follow from these.",
        "For the activations write dW, dA and dB of one layer. Whatever of the forward stands in them is kept; then "
        "ask which layers read the same array.",
    ),
    viva=[
        Viva(
            "With LoRA GPT-3's checkpoint shrinks by a factor of 10,000, its training memory by 3. Why by no more?",
            "The trained numbers shrink by 10,000, and with them gradients, optimizer state and the file. The frozen "
            "weights stay in memory, and so do the activations: they are what is left.",
            "Because the GPU allocates memory in large pieces.",
        ),
        Viva(
            "Somebody says: with LoRA I train 1 % of the parameters, so the batch can be a hundred times larger. "
            "What do you answer?",
            "Activations grow with the batch, and LoRA on all layers keeps as many as full fine-tuning: dA needs x, "
            "dx needs what the nonlinearities keep. What is freed is gradients and optimizer state, once, whatever the "
            "batch.",
            "That is right, since frozen layers keep nothing.",
        ),
    ],
    asks=["E2", "E3", "E5", "A10", "E9"],
)
