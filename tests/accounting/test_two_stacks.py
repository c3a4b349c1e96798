"""Counting a model of two stacks: the encoder's tokens are not the decoder's, and every byte and product is there."""

import copy
from typing import Any

import numpy as np
import pytest

import minilora
from minilora import accounting
from minilora.accounting import count, executed_flops, ledger
from minilora.accounting.live import counted
from minilora.accounting.named import NAMED
from minilora.cli import main
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.nn import Gradients, Inputs, Pass, recompute

B, T, S = 2, 5, 7


def build(gated: bool = False, tied: bool = True) -> Any:
    config = Config(31, 2, 24, 4, d_ff=9, max_length=16, head_dim=5, decoder_layers=3, tied=tied,
                    gated=gated, relative_buckets=8, relative_distance=6)  # fmt: skip
    return FAMILIES["t5"].build(config, np.random.default_rng(0))


def only(model: Any, *paths: str) -> Any:
    """Train what is at these paths, or below."""
    model.freeze()
    for path, parameter in model.named_parameters().items():
        parameter.trainable = path.startswith(paths)
    return model


def lora(model: Any, targets: Any, **words: Any) -> Any:
    minilora.attach_lora(model, targets, r=3, alpha=5, dropout=0.2, rng=0, **words)
    return model


ENCODER = "encoder.block_1.attention.q_proj"
WAYS = {
    "everything": lambda: build(),
    "everything, 1.1": lambda: build(True, tied=False),
    "LoRA": lambda: lora(build(), ["q_proj", "v_proj"]),
    "LoRA, 1.1": lambda: lora(build(True, tied=False), "all-linear"),
    "LoRA on cross-attention": lambda: lora(build(), [f"block_2.cross_attention.{x}_proj" for x in "kq"]),
    "LoRA on the encoder": lambda: lora(build(), [ENCODER]),
    "LoRA, and the norms": lambda: lora(build(), ["o_proj"], train=["norm"]),
    "the encoder": lambda: only(build(), "encoder.block_1"),
    "the decoder's last block": lambda: only(build(), "block_2"),
    "the biases of positions": lambda: only(build(), "block_0.attention.relative_bias"),
    "the embedding": lambda: only(build(), "embed"),
    "nothing": lambda: only(build(), "-"),
}  # fmt: skip


def step(model: Any) -> tuple[Any, dict[str, Any], Gradients, dict[str, int], dict[str, int]]:
    """The cache of a forward, the gradients, and the FLOPs of both passes."""
    rng, held, grads = np.random.default_rng(1), dict[str, Any](), Gradients()
    ids, inputs, run = rng.integers(0, 31, (B, T)), Inputs(source=rng.integers(0, 31, (B, S))), Pass(rng)
    forward = executed_flops(model, lambda: held.update(y=model.forward(ids, inputs, run)))
    y, cache = held["y"]
    dy = counted(rng.standard_normal(y.shape).astype(np.float32))
    backward = executed_flops(model, lambda: model.backward(dy, cache, grads))
    return cache, held, grads, forward, backward


@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_that_forward_keeps_and_the_products_of_both_passes_are_predicted(way):
    model = WAYS[way]()
    cache, _, grads, *executed = step(model)
    assert set(grads) == set(model.trainable_parameters().values())
    kept = ledger(model, B, T, dropout=True, loss=False, source_tokens=S)
    assert accounting.nbytes(cache) == sum(array.nbytes for array in kept)
    predicted = [{"products": p.products, "sums": p.sums} for p in accounting.flops(model, B, T, S)]
    assert executed == predicted


@pytest.mark.parametrize("way", ["everything", "LoRA, 1.1", "LoRA on the encoder"])
def test_blocks_of_both_stacks_that_are_run_again_give_the_same_gradients_for_the_products_predicted(way):
    model = WAYS[way]()
    before = step(model)[2]
    kept = sum(array.nbytes for array in ledger(model, B, T, dropout=True, source_tokens=S))
    recompute(model)
    _, _, grads, _, backward = step(model)
    assert set(grads) == set(before)
    assert all(np.array_equal(grads[p], before[p]) for p in grads)
    predicted = accounting.flops(model, B, T, S)[1]
    assert backward == {"products": predicted.products, "sums": predicted.sums}
    assert sum(array.nbytes for array in ledger(model, B, T, dropout=True, source_tokens=S)) < kept
    assert copy.deepcopy(model).encoder["block_0"].block is not model.encoder["block_0"].block


# Raffel et al. (2020), section 3.7, and for FLAN the sizes of T5 1.1; the totals are those of `transformers`
TOTALS = {"t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096, "t5-3b": 2_851_598_336,
          "t5-11b": 11_307_321_344, "flan-t5-small": 76_961_152, "flan-t5-base": 247_577_856,
          "flan-t5-large": 783_150_080, "flan-t5-xl": 2_849_757_184, "flan-t5-xxl": 11_135_332_352}  # fmt: skip


def test_every_named_t5_has_the_parameters_it_has_in_transformers():
    assert {name: count(name).total for name in NAMED if "t5" in name} == TOTALS
    assert count("t5-base", r=8).trainable == 2 * 12 * 3 * 8 * (768 + 768)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name", [name if "small" in name else pytest.param(name, marks=pytest.mark.slow) for name in TOTALS]
)
def test_transformers_has_as_many_parameters(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    words = {key: value for key, value in NAMED[name].items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        config = transformers.T5Config(**words)
        theirs = sum(p.numel() for p in transformers.T5ForConditionalGeneration(config).parameters())
    own_head = 0 if words.get("tie_word_embeddings", True) else config.vocab_size * config.d_model
    assert count(name).total == theirs + own_head  # a new model of transformers 5 ties a head that its files do not


def test_a_longer_source_costs_the_encoder_and_the_cross_attention_more_and_the_decoder_as_much():
    short, long = (count("t5-small", tokens=64, source_tokens=S) for S in (64, 128))
    linear = [account.flops()[0].linear for account in (short, long)]
    encoder = 6 * (4 * 512 * 512 + 2 * 512 * 2048) + 6 * 2 * 512 * 512  # and k and v of the cross-attentions
    assert linear[1] - linear[0] == 2 * 64 * encoder
    scores = [account.flops()[0].attention for account in (short, long)]
    assert scores[1] - scores[0] == 4 * 6 * 8 * 64 * ((128**2 - 64**2) + 64 * 64)


def test_the_count_of_a_t5_is_printed_with_the_formula_of_each_attention(narrow):
    text = "".join(narrow(["count", "--model", "t5-small", "--tokens", "32", "--source-tokens", "48"], main))
    assert "S = 48" in text
    assert "4 H D (S² B × 6 + T N × 6 + S N × 6)" in " ".join(text.split())


def test_source_tokens_and_virtual_tokens_are_refused_where_they_mean_nothing():
    with pytest.raises(ValueError, match="reads no source"):
        count("gpt2", source_tokens=8)
    with pytest.raises(ValueError, match="one stack"):
        count("t5-small", "prefix-embed")
    with pytest.raises(ValueError, match="not from 1 to t5-small's 512 positions"):
        count("t5-small", source_tokens=513)
