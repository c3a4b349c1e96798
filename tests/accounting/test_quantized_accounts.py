"""Bytes of a quantised base, of what is trained beside it and kept for it: counted, and in a live model."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TEXT, beside

from minilora import AdamW, Gradients, accounting, attach_lora
from minilora.accounting import count
from minilora.accounting.live import arrays
from minilora.accounting.memory import QUANTISED, held_weights
from minilora.cli import main
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.quantized import quantize
from minilora.quantization import format_named, formats
from minilora.quantization.base import PART

TARGETS = [["q_proj", "v_proj"], ["down_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]]


def built(family: str, rng: np.random.Generator, **changes: Any) -> Any:
    sizes = {"vocab_size": 31, "n_layers": 2, "d_model": 24, "n_heads": 4, "d_ff": 20, "max_length": 16}
    return FAMILIES[family].build(Config(**(sizes | changes)), rng)


@pytest.mark.each_value
@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("format", formats())
@pytest.mark.parametrize("family", TEXT)
def test_a_step_beside_a_quantised_base_holds_the_bytes_that_are_counted(family, format, targets, rng):
    model = built(family, rng)
    quantize(model, format)
    attach_lora(model, targets, r=3, rng=rng)
    ids = rng.integers(0, 31, (2, 7))
    logits, cache = model.forward(ids, beside(model, ids))
    grads, optimizer = Gradients(), AdamW(model.trainable_parameters())
    model.backward(rng.standard_normal(logits.shape).astype("f"), cache, grads)
    optimizer.step(grads)
    held = accounting.memory(model, cache, grads, optimizer)

    account = count(model, targets=targets, r=3, batch=2, tokens=7)
    kept = accounting.ledger(model, 2, 7, account.computed, loss=False)
    assert held == {
        **{part: account.memory()[part] for part in ("weights", "gradients", "optimizer")},
        "cache": sum(array.nbytes for array in kept),
    }
    assert (account.dtype, account.computed) == (format, "float32")
    every = [x for p in model.named_parameters().values() for x in arrays(p.data)]
    assert sum(x.nbytes for x in every) == held["weights"]  # nothing is held twice


@pytest.mark.parametrize("format", QUANTISED)
def test_what_is_counted_without_weights_is_what_a_live_model_holds(format, rng):
    model = built("llama", rng, tied=False)
    counted = held_weights(model, format)
    quantize(model, format)
    assert counted == held_weights(model, "float32")
    assert count(model, dtype=format).weights() == count(model).weights()
    assert count(model, dtype="float32").weights()["matrices in float32"].nbytes == 4 * sum(
        math.prod(shape) for shape in count(model).tensors.values() if len(shape) == 2
    )


@given(st.sampled_from(list(formats())), st.integers(1, 70), st.integers(1, 300))
def test_the_bytes_of_a_shape_are_those_of_a_matrix(format, n_out, n_in):
    cls = format_named(format)
    Q = cls.of(np.random.default_rng(n_in).standard_normal((n_out, n_in), dtype=np.float32))
    assert Q.nbytes == cls.nbytes_of((n_out, n_in))
    assert {name: (x.shape, x.dtype) for name, x in Q.arrays.items()} == {
        name: (shape, np.dtype(dtype)) for name, (shape, dtype) in cls.sizes(n_out, n_in).items()
    }


def test_no_more_of_a_matrix_is_decoded_than_some_rows_of_it(rng):
    account = count("llama-2-7b", "qlora")
    assert 0 < account.decoded <= 2 * PART < 2 * 4096 * 4096
    assert count("llama-2-7b", "lora").decoded == 0
    model = built("llama", rng)
    quantize(model, "nf4")
    assert count(model).decoded == 4 * 31 * 24  # the whole head, which is smaller


def test_the_weights_of_a_quantised_base_are_listed_by_kind(capsys):
    assert main(["count", "--model", "smollm2-135m", "--method", "qlora", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(said["weights"].values()) == said["memory"]["weights"]
    n = 106_168_320
    blocks = n // 64
    assert said["weights"]["codes of nf4-dq"] == n // 2
    assert said["weights"]["absmax of nf4-dq"] == blocks
    assert said["weights"]["added"] == 4 * said["trainable"]
    assert main(["count", "--model", "smollm2-135m", "--method", "qlora"]) == 0
    shown = capsys.readouterr().out
    assert "computed in bfloat16" in shown
    assert all(kind in shown for kind in said["weights"])
    assert "rows of one Ŵ at a time" in shown


def test_full_fine_tuning_of_a_quantised_model_is_refused(rng):
    model = built("llama", rng)
    quantize(model, "bfloat16")
    with pytest.raises(ValueError, match="full trains the weights themselves, which bfloat16 cannot hold"):
        count(model, "full")
