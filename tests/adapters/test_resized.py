"""Adapters of a base to whose vocabulary tokens were added: PEFT's files, both ways, and what of them is refused."""

import json
import re
import warnings

import numpy as np
import pytest
from peft_models import V, base, trained

from minilora import attach_lora
from minilora.adapters import peft
from minilora.adapters.attach import attach_tokens
from minilora.files import load_tensors, save_tensors
from minilora.models.saving import save_pretrained
from minilora.models.vocabulary import add_rows

IDS = np.array([[3, V, 5, V + 1, 2, 9]])
each_tie = pytest.mark.parametrize("tied", [True, False])
pytestmark = pytest.mark.filterwarnings("ignore")


def resized(tied, lora=True):
    """Ours: two tokens more, whose rows learn beside LoRA."""
    model = base("llama", tied=tied, dtype="float32")
    add_rows(model, 2)
    attach_tokens(model, [V, V + 1])
    if lora:
        attach_lora(model, ["q_proj"], r=2, rng=0)
    return trained(model)


def loaded(source, folder):
    config, tensors, _ = peft.read_adapter(folder)
    model = peft.load_base(source, config, tensors)
    return model, peft.load_adapter(model, folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """tied -> the folder of the base."""
    folders = {tied: tmp_path_factory.mktemp("bases") / str(tied) for tied in (True, False)}
    for tied, folder in folders.items():
        save_pretrained(base("llama", tied=tied, dtype="float32"), folder)
    return folders.get


@each_tie
@pytest.mark.parametrize("lora", [True, False])
def test_an_adapter_with_its_tokens_comes_back_and_says_how_many(tied, lora, source, tmp_path):
    model = resized(tied, lora)
    peft.save_adapter(model, tmp_path / "a")
    again, note = loaded(source(tied), tmp_path / "a")
    assert note.endswith("a: 2 tokens were added to its vocabulary")
    assert again.forward(IDS)[0].tobytes() == model.forward(IDS)[0].tobytes()
    peft.save_adapter(again, tmp_path / "b")
    assert (tmp_path / "b" / peft.WEIGHTS).read_bytes() == (tmp_path / "a" / peft.WEIGHTS).read_bytes()


def test_a_base_without_the_tokens_is_told_of_them_in_one_line_and_stays_as_it_was(source, tmp_path):
    peft.save_adapter(resized(True), tmp_path / "a")
    model = base("llama", dtype="float32")
    says = r"a: 2 tokens were added to its vocabulary, which is of 31 in this model: peft\.load_base\(\) loads"
    with pytest.raises(ValueError, match=says):
        peft.load_adapter(model, tmp_path / "a")
    assert len(model["embed.token"].weight.data) == V
    assert not any(module.is_adapter for _, module in model.named_modules())


def test_a_table_of_another_base_or_one_that_was_cut_and_other_rows_of_the_head_are_refused(source, tmp_path):
    peft.save_adapter(resized(True), tmp_path / "a")
    tensors, metadata = load_tensors(tmp_path / "a" / peft.WEIGHTS)
    table = "base_model.model.model.embed_tokens.token_adapter.base_layer.weight"
    head = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
    moved = tensors[table].copy()
    moved[3, 4] += 1
    cut = {name: x[: V - 1] if name.endswith("base_layer.weight") else x for name, x in tensors.items()}
    for wrong, says in (
        (tensors | {table: moved}, "embed_tokens.token_adapter.base_layer.weight is not the weight of this base"),
        (tensors | {head: 2 * tensors[head]}, "the head is tied to the embedding"),
        (cut, "token_indices: this layer has the rows 0 to 30, and not 32"),
    ):
        save_tensors(tmp_path / "a" / peft.WEIGHTS, wrong, metadata)
        with pytest.raises(ValueError, match=re.escape(says)):
            loaded(source(True), tmp_path / "a")


@pytest.fixture(scope="module")
def theirs():
    """PEFT's package, Transformers' and PyTorch."""
    return pytest.importorskip("peft"), pytest.importorskip("transformers"), pytest.importorskip("torch")


def their_base(theirs, folder):
    _, transformers, torch = theirs
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(V + 2)
    return model


def their_logits(model, theirs):
    return model(theirs[2].tensor(IDS)).logits.detach().numpy()


@pytest.mark.oracle
@each_tie
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({}, "LoraConfig"),
        ({"rows": True}, "LoraConfig"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "LoraConfig"),
        ({"token_indices": [V + 1, V]}, "TrainableTokensConfig"),
    ],
    ids=["frozen", "token rows", "saved whole", "token rows alone"],
)
def test_what_peft_writes_of_a_resized_model_is_read(words, kind, tied, theirs, source, tmp_path):
    package, _, torch = theirs
    if kind == "TrainableTokensConfig" and not tied:
        pytest.skip("PEFT 0.21.2 leaves the resized head out of this file, so that nothing can read it")
    words = dict(words)
    if words.pop("rows", False):
        words["trainable_token_indices"] = {"embed_tokens": [V, V + 1]} | ({} if tied else {"lm_head": [V, V + 1]})
    if kind == "LoraConfig":
        words |= {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    if tied and "modules_to_save" in words:
        words["ensure_weight_tying"] = True
    model = package.get_peft_model(their_base(theirs, source(tied)), getattr(package, kind)(**words))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "a")
    ours, note = loaded(source(tied), tmp_path / "a")
    assert "2 tokens were added to its vocabulary" in note
    np.testing.assert_allclose(ours.forward(IDS)[0], their_logits(model, theirs), rtol=2e-4, atol=2e-4)


@pytest.mark.oracle
@each_tie
@pytest.mark.parametrize("lora", [True, False])
def test_peft_reads_what_we_write_and_it_is_what_peft_writes(lora, tied, theirs, source, tmp_path):
    package = theirs[0]
    ours = resized(tied, lora)
    peft.save_adapter(ours, tmp_path / "a")
    model = package.PeftModel.from_pretrained(their_base(theirs, source(tied)), tmp_path / "a")
    np.testing.assert_allclose(their_logits(model, theirs), ours.forward(IDS)[0], rtol=2e-4, atol=2e-4)
    model.peft_config["default"].base_model_name_or_path = str(source(tied))
    model.save_pretrained(tmp_path / "b")
    (mine, _), (peft_s, _) = (load_tensors(tmp_path / name / peft.WEIGHTS) for name in "ab")
    assert mine.keys() == peft_s.keys()
    assert all(np.array_equal(mine[name], peft_s[name]) for name in mine)


def test_rows_that_follow_from_the_ids_alone_are_read_where_all_new_ones_learn(source, tmp_path):
    """PEFT saves no table where it cannot see that it was resized (a base without its config.json)."""
    ours = resized(True)
    peft.save_adapter(ours, tmp_path / "a")
    tensors, _ = load_tensors(tmp_path / "a" / peft.WEIGHTS)
    kept = {name: x for name, x in tensors.items() if "base_layer" not in name}
    save_tensors(tmp_path / "a" / peft.WEIGHTS, kept, {"format": "pt"})
    again, note = loaded(source(True), tmp_path / "a")
    assert "2 tokens were added" in note
    np.testing.assert_allclose(again.forward(IDS)[0], ours.forward(IDS)[0], rtol=1e-5, atol=1e-6)
    config = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(config | {"trainable_token_indices": [V, V + 7]}))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="this layer has the rows 0 to 30, and not 38"):
        loaded(source(True), tmp_path / "a")
