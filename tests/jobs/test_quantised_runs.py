"""--quantize: what each command does with a base that is held in fewer bits, and with the runs on one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import examples
import fakecupy
import numpy as np
import pytest
from commands import FINETUNE, WORDS, assert_refused, edit_json, lines, make_base, outside, tree
from small_runs import interrupting

import minilora
from minilora import quantization
from minilora.adapters.peft import PREFIX
from minilora.cli import main
from minilora.files import load_tensors
from minilora.jobs.bases import load_adapted
from minilora.jobs.prediction import Classifier
from minilora.models.generation import stream
from minilora.models.pretrained import load_pretrained, load_tokenizer
from minilora.models.quantized import format_of, quantize
from minilora.models.saving import base_hash, save_pretrained

FORMATS = list(quantization.formats())
ROWS = "".join(f"{'abcd'[i % 3 :] * (1 + i % 3) + 'xy'[i % 2]},{('yes', 'no')[i % 2]}\n" for i in range(40))
IDS = np.frombuffer(WORDS[:24], np.uint8)[None].astype(np.int64)
CLASSIFY = [
    *("finetune", "--task", "classify", "--base", "base", "--data", "rows.csv", "--epochs", "1", "--batch", "4"),
    *("--length", "8", "--rank", "2", "--lr", "0.05"),
]
GENERATE = ["generate", "--prompt", "def ", "--tokens", "8", "--temperature", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a text and rows; a run on the base in NF4, and a classifier's."""
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "base")
    (folder / "words.txt").write_bytes(WORDS)
    (folder / "rows.csv").write_text("text,label\n" + ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*FINETUNE, "--lr", "0.05", "--out", "run", "--quantize", "nf4"]) == 0
        assert main([*CLASSIFY, "--out", "classes", "--quantize", "nf4"]) == 0
    return folder


def printed(capfd, words):
    capfd.readouterr()
    assert main(words) == 0
    return capfd.readouterr()


def logits(model):
    return model.forward(IDS)[0]


# ---- a run ----


@pytest.mark.parametrize("name", examples.some_of(FORMATS))
def test_a_run_says_its_format_and_what_reads_its_adapter_holds_the_base_so(name, here, capfd):
    assert main([*FINETUNE, "--quantize", name]) == 0
    assert json.loads(Path("out", "settings.json").read_text())["quantize"] == name
    base = load_pretrained("base", quantize=name)
    assert re.search(rf"^for base +{base_hash(base)}, in {name}$", printed(capfd, ["info", "out"]).out, re.MULTILINE)
    adapted = printed(capfd, [*GENERATE, "--adapter", "out"])
    assert adapted.err == ""
    model, note = load_adapted("base", Path("out"))
    assert (format_of(model), note) == (name, "")
    assert main(["merge", "--adapter", "out", "--out", "merged"]) == 0
    np.testing.assert_allclose(logits(load_pretrained("merged")), logits(model), atol=1e-5)
    assert printed(capfd, [*GENERATE, "--base", "merged"]).out == adapted.out


def test_only_the_adapter_is_trained_and_a_step_is_that_on_the_decoded_base(here):
    """The losses of a run on codes, and on the float32 base of the same numbers, are the same."""
    model = load_pretrained("base", quantize="nf4")
    for parameter in model.named_parameters().values():
        if isinstance(parameter.data, quantization.Quantized):
            parameter.data = parameter.data.dense()
    save_pretrained(model, "decoded")
    assert main([*FINETUNE, "--lr", "0.05", "--base", "decoded", "--out", "dense"]) == 0
    histories = [json.loads(Path(out, "history.json").read_text()) for out in ("run", "dense")]
    assert histories[0] == histories[1]
    tensors = [load_tensors(Path(out, "adapter_model.safetensors"))[0] for out in ("run", "dense")]
    assert all(name.startswith(PREFIX) and "lora" in name for name in tensors[0])
    assert {n: x.tobytes() for n, x in tensors[0].items()} == {n: x.tobytes() for n, x in tensors[1].items()}


@pytest.mark.parametrize("name", ["nf4-dq", "int8"])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bytes(name, here, monkeypatch, capfd):
    words = [*FINETUNE, "--steps", "6", "--checkpoint-every", "2", "--quantize", name]
    assert main(words) == 0
    whole = tree(here / "out")
    shutil.rmtree("out")
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 4))
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert tree(here / "out") == whole


@pytest.mark.parametrize(
    ("more", "said"), [([], "None"), (["--quantize", "int8"], "'int8'"), (["--quantize", "none"], "None")]
)
def test_a_run_is_not_resumed_in_another_format(more, said, here, capfd):
    words = [*FINETUNE, "--lr", "0.05", "--out", "run", "--resume", *more]
    assert_refused(here, capfd, words, rf"run was run with quantize = 'nf4', not {said}: resume with the same settings")


def test_a_run_that_was_begun_before_there_were_formats_goes_on(here, monkeypatch):
    words = [*FINETUNE, "--steps", "6", "--checkpoint-every", "2"]
    assert main(words) == 0
    whole = tree(here / "out")
    shutil.rmtree("out")
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 4))
        assert main(words) == 130
    settings = json.loads(Path("out", "settings.json").read_text())
    assert settings.pop("quantize") is None
    Path("out", "settings.json").write_text(json.dumps(settings))
    assert main([*words, "--resume"]) == 0
    after = tree(here / "out")
    assert {name: x for name, x in after.items() if name != "settings.json"} == {
        name: x for name, x in whole.items() if name != "settings.json"
    }


@pytest.mark.slow
def test_a_device_gives_the_same_files(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fakecupy)
    words = [*FINETUNE, "--lr", "0.05", "--out", "device", "--quantize", "nf4", "--device", "cuda"]
    assert main(words) == 0
    assert tree(here / "device") == tree(here / "run")
    assert main([*GENERATE, "--adapter", "device", "--device", "cuda"]) == 0
    assert main(["merge", "--adapter", "device", "--out", "there", "--device", "cuda"]) == 0
    assert main(["merge", "--adapter", "run", "--out", "here"]) == 0
    assert tree(here / "there") == tree(here / "here")


def test_a_run_on_the_blocks_of_a_file_is_that_on_their_numbers_and_stays_on_them(here, capfd):
    """A .gguf: --quantize stored holds its blocks as they are, and without it they are decoded at once."""
    made_gguf = pytest.importorskip("made_gguf")
    made_gguf.write(here / "m.gguf", kind="Q8_0")
    words = [*FINETUNE, "--base", "m.gguf", "--lr", "0.05"]
    for out, more in (("blocks", ["--quantize", "stored"]), ("numbers", [])):
        assert main([*words, "--out", out, *more]) == 0
    one, other = tree(here / "blocks"), tree(here / "numbers")
    assert one["history.json"] == other["history.json"]
    tensors, metadata = load_tensors(Path("blocks", "adapter_model.safetensors"))
    theirs, plain = load_tensors(Path("numbers", "adapter_model.safetensors"))
    assert {n: x.tobytes() for n, x in tensors.items()} == {n: x.tobytes() for n, x in theirs.items()}
    assert metadata == plain | {"base_format": "Q8_0"}
    generate = [*GENERATE, "--adapter", "blocks"]
    said = [printed(capfd, words) for words in (generate, [*generate, "--quantize", "none"])]
    assert said[0] == said[1]  # no note: the numbers are the same
    assert said[0].err == ""
    assert format_of(load_adapted("m.gguf", Path("blocks"))[0]) == "Q8_0"


# ---- another format than the run's ----


@pytest.mark.parametrize(
    ("adapter", "held", "note"),
    [
        ("run", "none", "run was trained on this base in nf4, and here it is in full precision"),
        ("run", "int8", "run was trained on its base in nf4, and this one is in int8: its names and shapes fit, and"),
        ("plain", "nf4", "plain was trained on its base in full precision, and this one is in nf4: its names and"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "merge"])
def test_quantize_says_another_format_than_the_runs_and_a_note_says_that_it_differs(
    command, adapter, held, note, here, capfd
):
    if adapter == "plain":
        assert main([*FINETUNE, "--out", "plain"]) == 0
    words = GENERATE if command == "generate" else ["merge", "--out", "merged"]
    said = printed(capfd, [*words, "--adapter", adapter, "--quantize", held])
    assert said.err.startswith(f"note: {note}")
    model, _ = load_adapted("base", Path(adapter), None if held == "none" else held)
    assert format_of(model) == ("" if held == "none" else held)
    if command == "merge":
        np.testing.assert_allclose(logits(load_pretrained("merged")), logits(model), atol=1e-5)


def test_a_base_is_held_in_a_format_without_an_adapter_too(here, capfd):
    model = load_pretrained("base", quantize="nf4")
    said = printed(capfd, [*GENERATE[:-2], "--base", "base", "--quantize", "nf4"]).out
    assert said == "def " + "".join(generated(model)) + "\n"


def generated(model):
    return stream(model, "def ", 8, tokenizer=load_tokenizer("base"))


def test_another_base_is_refused_in_any_format_that_can_be_compared(here, capfd):
    make_base(here / "other", seed=2)
    for held in ([], ["--quantize", "none"], ["--quantize", "nf4"]):
        words = [*GENERATE, "--adapter", "run", "--base", "other", *held]
        assert_refused(here, capfd, words, "run was made for another base: the weights of this model are not those")


@pytest.mark.parametrize("value", [7, ["nf4"], True, "nf5"])
def test_a_format_in_settings_json_that_is_none_is_one_line(value, here, capfd):
    edit_json(here / "run" / "settings.json", quantize=value)
    says = (
        "no format is called 'nf5': did you mean 'nf4'"
        if value == "nf5"
        else "settings.json: quantize is .* not a name"
    )
    assert_refused(here, capfd, [*GENERATE, "--adapter", "run"], says)


@pytest.mark.parametrize("words", [FINETUNE, GENERATE, ["sweep", "--ranks", "2", "--data", "words.txt", "--out", "o"]])
def test_a_name_that_is_none_is_refused_with_the_nearest(words, here, capfd):
    assert_refused(
        here, capfd, [*words, "--quantize", "nf5"], "argument --quantize: no format is called 'nf5': did you"
    )


def test_help_lists_the_formats_without_numpy():
    assert quantization.format_names() == [*sorted(FORMATS), quantization.STORED]
    code = """if True:
        import sys
        from minilora.cli import main
        try:
            main(["finetune", "--help"])
        finally:
            assert "numpy" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], env=outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in FORMATS)


# ---- the other jobs ----


@pytest.mark.filterwarnings("default")
def test_predict_holds_the_base_as_the_run_did_unless_it_is_told_otherwise(here, capfd):
    words = ["predict", "--adapter", "classes", "--data", "rows.csv", "--label", "label", "--json"]
    own = printed(capfd, words)
    assert own.err == ""
    other = printed(capfd, [*words, "--quantize", "none"])
    note = "classes was trained on this base in nf4, and here it is in full precision: quantize='nf4'"
    assert lines(other.err) == [f"minilora: note: {note}"]
    assert own.out != other.out
    assert format_of(Classifier("classes").model) == "nf4"
    with pytest.warns(UserWarning, match=note):
        assert format_of(Classifier("classes", quantize=None).model) == ""
    assert json.loads(own.out.splitlines()[-1])["labels"] == ["no", "yes"]


def test_two_formats_are_compared_by_cross_validation(here, capfd):
    words = ["compare", "--base", "base", "--data", "rows.csv", "--epochs", "1", "--batch", "8", "--length", "8"]
    words += ["--rank", "2", "--folds", "2", "--json"]
    report = json.loads(printed(capfd, [*words, "--quantize", "nf4", "--against", "--quantize none"]).out)
    assert report["against"] == {"quantize": None}
    assert_refused(here, capfd, [*words, "--quantize", "nf4", "--against", "--quantize nf4"], "settings are the same")


def test_a_sweep_holds_the_base_in_the_format(here):
    words = ["sweep", "--base", "base", "--data", "words.txt", "--out", "swept", "--ranks", "1,2", "--seeds", "1"]
    words += ["--jobs", "1", "--steps", "2", "--batch", "2", "--length", "8", "--quantize", "int8"]
    assert main(words) == 0
    assert json.loads(Path("swept", "sweep.json").read_text())["settings"]["quantize"] == "int8"
    model, note = load_adapted("base", Path("swept", "rank-2", "seed-0"))
    assert (format_of(model), note) == ("int8", "")


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_rank_knows_the_base_of_a_run_in_fewer_bits(method, here, capfd):
    if method == "dora":
        assert main([*FINETUNE, "--lr", "0.05", "--method", "dora", "--quantize", "nf4"]) == 0
    folder = "out" if method == "dora" else "run"
    assert main(["rank", folder, "--base", "base", "--rank", "1", "--out", "small"]) == 0
    assert load_adapted("base", Path("small"), "nf4")[1] == ""
    make_base(here / "other", seed=2)
    capfd.readouterr()
    assert_refused(
        here,
        capfd,
        ["rank", folder, "--base", "other"],
        "(out|run) was made for another base: the weights of (other|this model) are",
    )


def test_quantize_is_a_name_of_the_package():
    assert minilora.quantize is quantize
    assert minilora.quantization is quantization
