"""The commands: what they make, what they say, and what they leave behind when the input is bad."""

import io
import itertools
import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import examples
import fakecupy
import numpy as np
import pytest
from commands import (
    FINETUNE,
    RUN,
    SMALL,
    WORDS,
    assert_refused,
    edit_json,
    edit_tensors,
    lines,
    make_base,
    make_inputs,
    outside,
    promised,
    refusing,
    subparsers,
    tree,
)
from threadpoolctl import threadpool_info, threadpool_limits

from minilora import __version__, accounting, ops
from minilora import files as checkpoint
from minilora.adapters import merge as merging
from minilora.cli import commands, main, parser
from minilora.cli.commands import ex
from minilora.data import Split
from minilora.files import load_tensors, save_tensors
from minilora.jobs import generation as jobs_generation
from minilora.jobs import pretraining, rank
from minilora.models import describe
from minilora.models.config import Config
from minilora.models.families.llama import llama
from minilora.models.saving import save_pretrained
from minilora.training import loop

COMMANDS = shlex.split("demo pretrain finetune predict compare sweep generate chat merge combine prune")
COMMANDS += shlex.split("info rank count audit verify ex")
INNER = [f"ex {name}" for name in ex.COMMANDS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base, a text, and an adapter made from both."""
    folder = tmp_path_factory.mktemp("made")
    make_inputs(folder)
    words = ["--base", folder / "base", "--data", folder / "words.txt", "--out", folder / "adapter"]
    assert main(["finetune", *map(str, words), *RUN, "--lr", "0.05"]) == 0
    return folder


GENERATE = shlex.split("generate --base base --adapter adapter --prompt 'def ' --temperature 1 --tokens 20")
MERGE = ["merge", "--base", "base", "--adapter", "adapter", "--out", "out"]


# ---- help ----


@pytest.mark.parametrize("command", COMMANDS + INNER)
def test_help_shows_an_example_that_parses_and_what_out_will_contain(command, capfd):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    shown = capfd.readouterr().out
    assert stop.value.code == 0
    example = shlex.split(re.search(r"^example\n  minilora (.*)$", shown, re.MULTILINE)[1])
    assert " ".join(example).startswith(command)
    parser().parse_args(example)
    assert ("--out will contain" in shown) == ("--out DIR" in shown)


def test_help_lists_every_command_and_what_it_does(capfd):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capfd.readouterr().out
    assert list(subparsers()) == COMMANDS
    assert all(re.search(rf"^    {command} +[A-Z]", shown, re.MULTILINE) for command in COMMANDS)


def test_every_file_in_commands_is_a_command():
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    assert files == {*commands.COMMANDS, "__init__"} - {"ex"}
    assert {path.stem for path in Path(ex.__file__).parent.glob("*.py")} == {*ex.COMMANDS, "__init__"}


def test_version(capfd):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capfd.readouterr().out) == (0, f"minilora {__version__}\n")


# ---- good paths ----


def test_what_is_made_is_what_help_promised_and_each_step_leads_to_the_next(here, capfd):
    others = {"scores.json", "curves.png", "forgetting.png"}  # of --task classify, and of --watch
    assert {path.name for path in (here / "adapter").iterdir()} == promised("finetune") - others
    assert main(["info", "adapter"]) == 0
    assert re.search(r"LORA, r = 2, lora_alpha = 16(\.0)?, lora_dropout = ", capfd.readouterr().out)
    assert main(GENERATE) == 0
    adapted = capfd.readouterr()
    assert adapted.out.startswith("def ")
    assert lines(adapted.err) == []
    assert main(GENERATE[:3] + GENERATE[5:]) == 0
    assert capfd.readouterr().out != adapted.out
    assert main(MERGE) == 0
    assert "7 adapters merged" in capfd.readouterr().out
    assert {path.name for path in (here / "out").iterdir()} == promised("merge")
    assert main(["generate", "--base", "out", *GENERATE[5:]]) == 0
    assert capfd.readouterr().out == adapted.out


def test_a_merged_model_has_the_files_of_its_bases_tokenizer_whatever_can_be_read_of_them(here):
    files = {
        "vocab.txt": b"\xff",
        "tokenizer_config.json": b'{"model_max_length": 7',
        "chat_template.jinja": b"{{ x }}",
    }
    for name, content in files.items():
        (here / "base" / name).write_bytes(content)
    (here / "base" / "additional_chat_templates").mkdir()
    (here / "base" / "additional_chat_templates" / "rag.jinja").write_bytes(b"{{ y }}")
    assert main(MERGE) == 0
    beside = {"additional_chat_templates": None, os.path.join("additional_chat_templates", "rag.jinja"): b"{{ y }}"}
    weights = ("config.json", "model.safetensors")
    assert {name: x for name, x in tree(here / "out").items() if name not in weights} == files | beside


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(here):
    words = [*FINETUNE, "--dropout", "0.2"]
    for out, seed in (("one", "4"), ("two", "4"), ("three", "5")):
        assert main([*words, "--out", out, "--seed", seed]) == 0
    assert tree(here / "one") == tree(here / "two")
    assert all(tree(here / "three")[name] != content for name, content in tree(here / "one").items()
               if name not in ("adapter_config.json", "samples.json"))  # fmt: skip


def test_a_draw_follows_its_seed(here, capfd):
    def draw(seed: str) -> str:
        assert main([*GENERATE, "--temperature", "1.5", "--top-k", "50", "--seed", seed]) == 0
        return capfd.readouterr().out

    assert draw("1") == draw("1") != draw("2")


def test_the_same_commands_run_on_a_device_and_give_the_same_files(here, capfd, monkeypatch):
    assert main([*FINETUNE]) == 0
    assert main(["merge", "--base", "base", "--adapter", "out", "--out", "merged"]) == 0
    monkeypatch.setitem(sys.modules, "cupy", fakecupy)
    words = [word if word != "out" else "device" for word in FINETUNE]
    assert main([*words, "--device", "cuda"]) == 0
    assert main(["merge", "--base", "base", "--adapter", "device", "--out", "moved", "--device", "cuda"]) == 0
    assert main(["generate", "--base", "moved", "--prompt", "def", "--tokens", "3", "--device", "cuda"]) == 0
    assert tree(here / "device") == tree(here / "out")
    assert tree(here / "moved") == tree(here / "merged")


def test_info_says_how_far_a_run_has_come(here, capfd):
    assert main([*FINETUNE]) == 0
    capfd.readouterr()
    assert main(["info", "out"]) == 0
    said = capfd.readouterr().out
    steps = json.loads((here / "out" / "settings.json").read_text())["steps"]
    assert f"{steps} of {steps} steps" in said
    assert "words.txt" in said


@pytest.mark.parametrize("lacking", ["steps", "seed", "batch", "length"])
def test_settings_that_are_not_of_a_run_are_refused_and_never_overwritten(lacking, here, capfd):
    settings = json.loads((here / "adapter" / "settings.json").read_text())
    del settings[lacking]
    (here / "adapter" / "settings.json").write_text(json.dumps(settings))
    assert_refused(here, capfd, ["info", "adapter"], rf"settings\.json is not of a run, it lacks '{lacking}'")
    (here / "out").mkdir()
    (here / "adapter" / "settings.json").rename(here / "out" / "settings.json")
    for words in ([], ["--resume"]):
        assert_refused(here, capfd, [*FINETUNE, *words], r"settings\.json is not of a run, .*: choose another folder")


@pytest.mark.parametrize("note", [{}, {"minilora": "x"}, {"minilora": "{}"}, {"minilora": "[1]"}], ids=str)
def test_info_refuses_a_checkpoint_of_something_else(note, here, capfd):
    save_tensors(here / "adapter" / "checkpoint.safetensors", {"x": np.zeros(2)}, note)
    assert_refused(here, capfd, ["info", "adapter"], r"checkpoint\.safetensors is not a checkpoint of minilora")


def test_the_command_to_try_next_can_be_pasted(here, capfd):
    (here / "base").rename(here / "my base")
    assert main([*FINETUNE, "--base", "my base", "--out", "it's mine"]) == 0
    program, *words = shlex.split(capfd.readouterr().out.splitlines()[-1])
    assert program == "minilora"
    assert main([*words, "--tokens", "2"]) == 0


def test_info_names_the_base_that_an_adapter_was_made_for(here, capfd):
    assert main(["info", "base"]) == 0
    of_base = dict(re.split(r"  +", line, maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert main(["info", "adapter"]) == 0
    of_adapter = dict(re.split(r"  +", line, maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert of_base["base sha256"] == of_adapter["for base"]
    total = sum(x.size for x in load_tensors(here / "base" / "model.safetensors")[0].values())
    assert of_base["model"] == f"llama, {total:,} parameters"
    assert main(["info", "builtin"]) == 0


def test_pretraining_writes_what_help_promises_and_a_model_that_can_be_used(here, monkeypatch, capfd):
    monkeypatch.setattr(pretraining, "SHAPE", Config(**SMALL | {"max_length": 128}))
    monkeypatch.setattr(pretraining, "english", lambda: Split(WORDS, WORDS[:500], WORDS[:700]))
    assert main(["pretrain", "--out", "out", "--steps", "2"]) == 0
    assert "bits per byte of test text" in capfd.readouterr().out
    assert {path.name for path in (here / "out").iterdir()} == promised("pretrain")
    assert main(["generate", "--base", "out", "--prompt", "x", "--tokens", "2"]) == 0


def test_an_adapter_that_does_not_say_its_base_works_with_a_note(here, capfd):
    assert main(GENERATE) == 0
    expected = capfd.readouterr().out
    edit_tensors(here / "adapter" / "adapter_model.safetensors", lambda tensors: tensors)  # and its metadata is gone
    assert main(GENERATE) == 0
    out, err = capfd.readouterr()
    assert out == expected
    assert [line for line in lines(err) if "note: adapter does not say which base it is for" in line] == lines(err)


@pytest.mark.parametrize("length", ["1", "3"])
def test_a_window_of_any_length_will_do(here, length):
    assert main([*FINETUNE, "--length", length]) == 0


# ---- threads ----


@pytest.mark.parametrize(("words", "n"), [([], 1), (["--threads", "2", "--shards", "2"], 2)])
def test_threads_is_the_number_of_blas_threads_of_a_command_and_of_nothing_after_it(words, n, here, monkeypatch):
    seen, forward = set(), ops.cross_entropy_forward

    def watched(*arguments):
        seen.update(blas())
        return forward(*arguments)

    monkeypatch.setattr(ops, "cross_entropy_forward", watched)
    with threadpool_limits(3, user_api="blas"):
        before = blas()
        assert main([*FINETUNE, *words]) == 0
        assert blas() == before
    assert seen == {n for _ in before}


def blas() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("words", [[], ["count"]])
def test_help_does_not_wait_for_numpy(words):
    code = f"""if True:
        import sys
        import minilora.cli
        try:
            minilora.cli.main([*{words}, "--help"])
        finally:
            assert not {{"numpy", "threadpoolctl"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=outside())


# ---- bad input ----

BAD_OPTIONS = {
    "rank 0": (["--rank", "0"], "--rank: '0' is not a whole number above 0"),
    "rank -1": (["--rank", "-1"], "--rank: '-1' is not a whole number above 0"),
    "an option of another task": (["--epochs", "3"], "--task text does not read --epochs: leave it out"),
    "no such target": (
        ["--targets", "q_proj,q_prox"],
        "no layer is called 'q_prox': did you mean 'q_proj'\\? choose from embed, q_proj, k_proj, v_proj, o_proj",
    ),
    "an empty target": (["--targets", ""], "no target is named: choose from embed, q_proj"),
    "dropout 1": (["--dropout", "1"], "dropout 1.0 is not a probability below 1"),
    "a negative rate": (["--lr", "-1"], "lr: '-1'"),
    "a rate that is no number": (["--lr", "nan"], "lr: 'nan'"),
    "absurd steps": (["--steps", "9" * 20], "is not a whole number above 0, of 9 digits at most"),
    "an absurd seed": (["--seed", "9" * 5000], "is not a whole number from 0 up, of 18 digits at most"),
    "negative patience": (["--patience", "-1"], "patience: '-1'"),
    "data missing": (["--data", "nowhere.txt"], "No such file or directory: nowhere.txt"),
    "data a folder": (["--data", "base"], "Is a directory: base, and a file is meant: it holds config.json, model"),
    "data shorter than a batch": (["--batch", "999"], "tokens are less than one batch of 999 windows of 8: more text"),
    "base missing": (
        ["--base", "nowhere"],
        "no folder or file 'nowhere', none of builtin, minilm, smollm2, and the Hub",
    ),
    "base without config": (["--base", "."], r"holds no config\.json: it is not a model folder"),
    "windows too long": (["--length", "33"], "windows of 33 tokens are longer than the model's 32 positions"),
    "nothing to resume": (["--resume"], "out holds no run to resume: start one without --resume"),
    "a negative seed": (["--seed", "-1"], "seed: '-1' is not a whole number"),
    "out is a file": (["--out", "words.txt"], r"words\.txt is a file: choose another folder"),
    "out is below a file": (["--out", "words.txt/out"], "words.txt"),
    "out holds a folder called so": (["--out", "odd"], r"odd already holds settings\.json: choose another folder"),
    "out holds something": (["--out", "base"], r"base already holds config\.json: choose another folder"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_finetune_refuses_bad_options_in_one_line_and_makes_nothing(name, here, capfd):
    words, says = BAD_OPTIONS[name]
    (here / "odd" / "settings.json").mkdir(parents=True)
    assert_refused(here, capfd, [*FINETUNE, *words], says)


BAD_TEXTS = {
    "empty": (b"", "words.txt is empty"),
    "binary": (b"text\0text" * 99, "words.txt is not UTF-8 text: it holds bytes of 0"),
    "another encoding": ("naïve ".encode("latin-1") * 99, "words.txt line 1 is not UTF-8: say its encoding"),
    "short": (b"x" * 20, "16 tokens are less than one batch of 2 windows of 8"),
    "nothing left to hold out": (b"x" * 9, "leaves 1 tokens to hold out", "--batch", "1", "--length", "4"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_finetune_refuses_a_text_it_cannot_learn_from(name, here, capfd):
    content, says, *words = BAD_TEXTS[name]
    (here / "words.txt").write_bytes(content)
    assert_refused(here, capfd, [*FINETUNE, *words], says)


@pytest.mark.parametrize("named", [("words.txt",), ()])  # a read that fails half-way does not name the file
def test_finetune_refuses_a_text_that_cannot_be_read_and_names_it(named, here, capfd, monkeypatch):
    def read_bytes(path: Path) -> bytes:
        if path.name == "words.txt":
            raise OSError(5, "Input/output error", *named)
        return original(path)

    before, original = tree(here), Path.read_bytes
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", read_bytes)
        assert main(FINETUNE) == 2
    assert lines(capfd.readouterr().err) == ["minilora: Input/output error: words.txt"]
    assert tree(here) == before


def pickled() -> bytes:
    file = io.BytesIO()
    pickle.dump({"weight": np.zeros(3)}, file)
    return file.getvalue()


def without_first(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(sorted(tensors.items())[1:])


def with_one_more(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return tensors | {"more": np.zeros(2, dtype=np.float32)}


def with_a_nan(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.where(x == x.max(), np.float32(np.nan), x) for name, x in tensors.items()}


def transposed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x.T for name, x in tensors.items()}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def oversized(path: Path) -> None:
    path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])


UNREADABLE = r"model\.safetensors cannot be read as safetensors: "
UNFIT = r"the tensors of base do not fit its config\.json: "
BAD_BASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another family": (lambda base: edit_json(base / "config.json", model_type="mpt"), "family 'mpt' is not supported"),
    "a feature": (lambda base: edit_json(base / "config.json", mlp_bias=True), "mlp_bias = True is not supported"),
    "no JSON": (lambda base: (base / "config.json").write_text("{"), r"config\.json is not valid JSON"),
    "deep": (lambda base: (base / "config.json").write_text("[" * 10**5), r"config\.json is not valid JSON"),
    "a list": (lambda base: (base / "config.json").write_text("[]"), r"config\.json does not hold a JSON object"),
    "an empty config": (lambda base: (base / "config.json").write_text("{}"), "family None is not supported"),
    "no width": (lambda base: (base / "config.json").write_text('{"model_type": "llama"}'), r"lacks 'vocab_size'"),
    "odd heads": (lambda base: edit_json(base / "config.json", num_attention_heads=3), UNFIT + ".*shape"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), r"base holds no model\.safetensors and no "),
    "truncated weights": (lambda base: cut_short(base / "model.safetensors"), UNREADABLE),
    "empty weights": (lambda base: (base / "model.safetensors").write_bytes(b""), UNREADABLE),
    "an oversized header": (lambda base: oversized(base / "model.safetensors"), UNREADABLE),
    "pickled weights": (
        lambda base: (base / "model.safetensors").write_bytes(pickled()), UNREADABLE + "it is a pickle",
    ),
    "weights of another width": (lambda base: edit_json(base / "config.json", intermediate_size=32), UNFIT + ".*shape"),
    "more layers": (lambda base: edit_json(base / "config.json", num_hidden_layers=2), UNFIT + ".*missing: block_1"),
    "no layers": (lambda base: edit_json(base / "config.json", num_hidden_layers=0), r"config\.json: .*layers = 0"),
    "one too many": (lambda base: edit_tensors(base / "model.safetensors", with_one_more), UNFIT + ".*unexpected: "),
    "a missing tensor": (lambda base: edit_tensors(base / "model.safetensors", without_first), UNFIT + ".*missing: "),
    "no number": (lambda base: edit_tensors(base / "model.safetensors", with_a_nan), r"not finite: get the file again"),
    "an absurd width": (lambda base: edit_json(base / "config.json", hidden_size=10**9, head_dim=None), UNFIT),
    "absurdly many layers": (lambda base: edit_json(base / "config.json", num_hidden_layers=10**9), "10{9} layers are"),
    "no positive eps": (lambda base: edit_json(base / "config.json", rms_norm_eps=math.nan), "rms_norm_eps = nan is n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BASES)
def test_a_base_that_cannot_be_used_is_refused_in_one_line(name, here, capfd):
    damage, says = BAD_BASES[name]
    damage(here / "base")
    assert_refused(here, capfd, FINETUNE, says)
    assert_refused(here, capfd, GENERATE, says)
    assert_refused(here, capfd, ["info", "base"], says)


def test_a_vocabulary_too_small_for_bytes_is_refused(here, capfd):
    make_base(here / "small", vocab_size=100)
    assert_refused(here, capfd, [*FINETUNE, "--base", "small"], "tokenizer.json is missing")
    assert_refused(here, capfd, ["generate", "--base", "small", "--prompt", "x"], "tokenizer.json is missing")


def test_a_vocabulary_of_more_than_bytes_is_told_so(here, capfd):
    make_base(here / "large", vocab_size=5000)
    assert_refused(here, capfd, ["generate", "--base", "large", "--prompt", "x"], "tokenizer.json is missing")


ADAPTER = r"adapter_model\.safetensors"
CONFIG = r"adapter_config\.json"
BAD_ADAPTERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no folder or file 'adapter', and the Hub's cache lacks it"),
    "not an adapter": (lambda a: [file.unlink() for file in a.iterdir()], f"holds no {CONFIG}: it is not an adapter f"),
    "no config": (lambda a: (a / "adapter_config.json").unlink(), f"adapter holds no {CONFIG}"),
    "no rank": (lambda a: (a / "adapter_config.json").write_text("{}"), f"{CONFIG}: it lacks 'peft_type'"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), f"{ADAPTER} is missing"),
    "truncated": (lambda a: cut_short(a / "adapter_model.safetensors"), f"{ADAPTER} cannot be read as safetensors"),
    "pickled": (lambda a: (a / "adapter_model.safetensors").write_bytes(pickled()), "it is a pickle"),
    "a missing tensor": (lambda a: edit_tensors(a / "adapter_model.safetensors", without_first), "missing: base_model"),
    "misshapen": (lambda a: edit_tensors(a / "adapter_model.safetensors", transposed), "has shape .* is needed"),
    "no tensors": (lambda a: edit_tensors(a / "adapter_model.safetensors", lambda tensors: {}), ADAPTER),
    "DoRA": (lambda a: edit_json(a / "adapter_config.json", use_dora=True), "missing: .*magnitude_vector"),
    "another rank": (lambda a: edit_json(a / "adapter_config.json", r=3), "has shape .* is needed"),
    "CorDA": (lambda a: edit_json(a / "adapter_config.json", init_lora_weights="corda"), "init_lora_weights = 'corda'"),
    "other targets": (lambda a: edit_json(a / "adapter_config.json", target_modules=["o_proj"]), "do not name .*q_pr"),
    "no number": (lambda a: edit_tensors(a / "adapter_model.safetensors", with_a_nan), f"{ADAPTER}: .* not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_an_adapter_that_cannot_be_used_is_refused_in_one_line(name, here, capfd):
    damage, says = BAD_ADAPTERS[name]
    damage(here / "adapter")
    assert_refused(here, capfd, GENERATE, says)
    assert_refused(here, capfd, MERGE, says)


def test_an_adapter_made_for_another_base_is_refused(here, capfd):
    make_base(here / "other", seed=2)
    for words in (GENERATE, MERGE):
        assert_refused(here, capfd, [*words, "--base", "other"], "adapter was made for another base")


@pytest.mark.parametrize("name", ["base/config.json", "adapter/adapter_config.json"])
def test_whatever_a_config_says_the_answer_is_a_result_or_one_line(name, here, capfd):
    wrong: list[Any] = [None, True, -1, 0, 1.5, "word", "(", [], {}, {"(": 1}]
    before, failed = (here / name).read_text(), []
    for key, first in zip(json.loads(before), itertools.cycle(range(8)), strict=False):
        for value in wrong if examples.every else wrong[first::8]:
            edit_json(here / name, **{key: value})
            for words in ([*GENERATE[:-1], "1"], ["info", name.partition("/")[0]]):
                try:
                    code, said = main(words), lines(capfd.readouterr().err)
                except Exception as error:
                    failed.append(f"{words[0]} with {key} = {value!r}: {type(error).__name__}: {error}")
                else:
                    if (code, len(said)) not in ((0, 0), (2, 1)):
                        failed.append(f"{words[0]} with {key} = {value!r}: {code}, {said}")
            (here / name).write_text(before)
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("words", [FINETUNE, MERGE, ["demo"], ["pretrain"]], ids=lambda words: words[0])
def test_out_that_holds_something_else_is_left_as_it_was(words, here, capfd):
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("years of work")
    assert_refused(here, capfd, [*words, "--out", "out"], r"out already holds thesis\.txt: choose another folder")


@pytest.mark.parametrize(
    "words", [FINETUNE, GENERATE, MERGE, ["demo", "--out", "out"], ["pretrain", "--out", "out"]], ids=lambda w: w[0]
)
def test_without_cupy_or_without_a_gpu_cuda_is_refused(words, here, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert_refused(here, capfd, [*words, "--device", "cuda"], r"needs CuPy: pip install '\.\[cuda13\]' in the clone")

    def no_device(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ones=no_device, ndarray=type(None)))
    assert_refused(here, capfd, [*words, "--device", "cuda"], "CuPy is installed but cannot use a GPU here: .*NoDevice")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompt", ""], "the prompt is empty: give at least one character"),
        (["--temperature", "-0.1"], "temperature -0.1 is not a finite number from 0 up"),
        (["--temperature", "nan"], "temperature.* nan"),
        (["--top-k", "-5"], "top-k: '-5'"),
    ],
)
def test_generate_refuses_what_it_cannot_draw_from(words, says, here, capfd):
    assert_refused(here, capfd, [*GENERATE, *words], says)


def test_the_least_of_temperatures_takes_the_most_probable_without_a_word(here, capfd):
    said = []
    for temperature in ("0", "1e-320"):
        assert main([*GENERATE, "--temperature", temperature]) == 0
        said.append(capfd.readouterr())
    assert said[0] == said[1]


def test_a_prompt_whose_bytes_are_no_utf8_is_continued(here, capfd):
    assert main([*GENERATE, "--prompt", b"caf\xe9".decode(errors="surrogateescape"), "--tokens", "3"]) == 0
    assert capfd.readouterr().out.startswith("caf\N{REPLACEMENT CHARACTER}")


def test_info_refuses_a_folder_that_holds_neither_model_nor_adapter(here, capfd):
    assert_refused(here, capfd, ["info", "nowhere"], "no folder or file 'nowhere'")
    Path("empty").mkdir()
    assert_refused(
        here, capfd, ["info", "empty"], r"empty holds no model \(config\.json\), adapter .* sweep .* or comparison"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "required: command"),
        (["finetune", "--data", "x", "--out", "y", "--steps", "0"], "--steps: '0' is not a whole number above 0"),
        (["finetune", "--data", "x", "--out", "y", "--batch", "1.5"], "--batch: '1.5' is not a whole number above 0"),
        (["predict"], "required: --adapter"),
    ],
)
def test_words_that_do_not_parse_are_answered_in_one_line_too(words, says, capfd):
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = lines(capfd.readouterr().err)
    assert stop.value.code == 2
    assert len(said) == 1
    assert re.search(says, said[0])


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--adapter", "", "--prompt", "x"],
        ["generate", "--base=", "--prompt", "x"],
        ["merge", "--adapter", "", "--out", "out"],
        ["finetune", "--data", "words.txt", "--out", ""],
        ["info", ""],
        ["rank", ""],
        ["count", "--model", ""],
    ],
    ids=" ".join,
)
def test_a_variable_of_the_shell_that_is_not_set_is_not_the_default(words, here, capfd):
    before = sorted(here.iterdir())
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "is empty (see minilora" in capfd.readouterr().err
    assert sorted(here.iterdir()) == before


# ---- a disk that is full, read-only, or fails in the middle ----


def failing(original: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`original`, but its call number `at` finds the disk full."""
    calls = itertools.count(1)

    def call(*arguments: Any) -> Any:
        if next(calls) == at:
            raise OSError(28, "No space left on device")  # as the system raises it: without a file name
        return original(*arguments)

    return call


@pytest.mark.parametrize("out", ["out", "new/folder/out"])
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fails_at_any_moment_leaves_no_half_made_folder(out, name, here, capfd, monkeypatch):
    original, calls = getattr(os, name), []
    with monkeypatch.context() as patched:
        patched.setattr(os, name, lambda *arguments: calls.append(arguments) or original(*arguments))
        assert main([*MERGE, "--out", "elsewhere"]) == 0
    assert len(calls) >= 2
    capfd.readouterr()
    for at in range(1, len(calls) + 1):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, failing(original, at))
            assert_refused(here, capfd, [*MERGE, "--out", out], "No space left on device")


@pytest.mark.parametrize("words", [FINETUNE, MERGE], ids=lambda words: words[0])
def test_a_full_disk_is_told_with_the_name_of_the_file(words, here, capfd, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 1))
    assert_refused(here, capfd, words, r"No space left on device: .*\bout\b")


@pytest.mark.parametrize("words", [FINETUNE, MERGE], ids=lambda words: words[0])
def test_a_read_only_disk_is_told_with_the_name_of_the_file(words, here, capfd, monkeypatch):
    def refuse(name: Any, mode: str = "r", **options: Any) -> Any:
        raise OSError(30, "Read-only file system", str(name))

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    assert_refused(here, capfd, words, r"Read-only file system: .*\bout\b")


WRITERS = {
    "finetune": FINETUNE,
    "sweep": ["sweep", *FINETUNE[1:7], "--ranks", "1", "--jobs", "1", "--batch", "2", "--length", "8"],
    "demo": ["demo", "--out", "out"],
    "demo --grid": ["demo", "--grid", "--out", "out"],
    "pretrain": ["pretrain", "--out", "out"],
    "merge": MERGE,
    "rank --out": ["rank", "adapter", "--rank", "1", "--out", "out"],
    "rank --plot": ["rank", "adapter", "--plot", "out.png"],
    "count --plot": ["count", "--compare", "full,lora", "--plot", "out.png"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_that_nothing_can_be_written_is_found_before_the_work(name, here, capfd, monkeypatch):
    def work(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the work has begun")

    for module, function in (
        (loop, "sharded_loss_and_gradients"), (merging, "merge"), (rank, "measure"), (accounting, "count"),
    ):  # fmt: skip
        monkeypatch.setattr(module, function, work)
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refusing)
        assert_refused(here, capfd, WRITERS[name], "Permission denied: .*here")


@pytest.mark.parametrize("out", ["out", "new/folder/out", "empty"])
def test_to_find_out_whether_a_folder_can_be_written_leaves_nothing(out, here):
    (here / "empty").mkdir()
    before = tree(here)
    checkpoint.check_free(out)
    assert tree(here) == before
    checkpoint.write_folder(out, {"one": b"1"})
    assert tree(here / out) == {"one": b"1"}


def test_what_a_killed_process_had_not_finished_is_not_in_the_way_and_a_folder_of_the_same_name_is(here):
    for name in ("report.json.partial", ".minilora.partial"):
        (here / "out" / name).mkdir(parents=True)
    checkpoint.check_free("out", ["report.json"])
    (here / "out" / "report.json").mkdir()
    with pytest.raises(ValueError, match=r"report\.json is a folder, where a file must be written: move it away"):
        checkpoint.check_free("out", ["report.json"])


# ---- what main says of an error ----


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error"), "minilora: Input/output error"),
        (OSError(5, "Input/output error", "x.txt"), "minilora: Input/output error: x.txt"),
        (MemoryError("Unable to allocate 9 GiB"), "minilora: out of memory (Unable to allocate 9 GiB): give smaller"),
        (MemoryError(), "minilora: out of memory: give smaller numbers"),
        (KeyboardInterrupt("stopped after step 5"), "minilora: stopped after step 5"),
        (KeyboardInterrupt(), "minilora: stopped"),
    ],
    ids=repr,
)
def test_an_error_is_one_line(error, said, here, capfd, monkeypatch):
    def fail(folder: Path) -> Any:
        raise error

    monkeypatch.setattr(describe, "describe_model", fail)
    assert main(["info", "base"]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    (line,) = lines(capfd.readouterr().err)
    assert line.startswith(said)
    assert "None" not in line


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AttributeError("x"), AssertionError("x")], ids=repr)
def test_a_bug_is_a_traceback(error, here, monkeypatch):
    def fail(folder: Path) -> Any:
        raise error

    monkeypatch.setattr(describe, "describe_model", fail)
    with pytest.raises(type(error)):
        main(["info", "base"])


# ---- numbers that blow up ----


def test_a_rate_that_blows_up_is_one_line_that_names_the_module_and_the_checkpoint(here):
    words = [*FINETUNE, "--steps", "6", "--lr", "1e30", "--checkpoint-every", "1"]
    done = subprocess.run([sys.executable, "-m", "minilora", *words], capture_output=True, env=outside())
    said = lines(done.stderr.decode())
    assert done.returncode == 2
    assert len(said) == 1, said
    path = re.escape(os.path.join("out", "checkpoint.safetensors"))
    message = rf"minilora: the loss of step \d is nan, first in (\S+): lower the learning rate; {path} holds the last "
    assert re.fullmatch(message + "good state; --resume goes on from there, or start in another folder", said[0])
    assert {path.name for path in (here / "out").iterdir()} == {"settings.json", "checkpoint.safetensors"}
    load_tensors(here / "out" / "checkpoint.safetensors")


# ---- an instruct model, made small ----


@pytest.fixture
def instruct(here, rng) -> Path:
    """A folder with a tiny llama, a tokenizer of single letters, and a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = ["<end>", "<turn>", *map(chr, range(32, 127))]
    splitter = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    splitter.add_special_tokens(["<end>", "<turn>"])
    splitter.decoder = tokenizers.decoders.Fuse()
    save_pretrained(
        llama(Config(vocab_size=100, n_layers=1, d_model=16, n_heads=2, max_length=64), rng), here / "instruct"
    )
    splitter.save(str(here / "instruct" / "tokenizer.json"))
    template = (
        "{% for m in messages %}<turn>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<turn>{% endif %}"
    )
    settings = {"eos_token": "<end>", "chat_template": template}
    (here / "instruct" / "tokenizer_config.json").write_text(json.dumps(settings))
    return here / "instruct"


def test_chat_answers_each_line_until_the_input_ends(instruct, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand again\n"))
    words = ["--tokens", "5", "--temperature", "1", "--seed", "3"]
    assert main(["chat", "--base", "instruct", *words]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == 2
    assert all(len(line) <= 5 and "<end>" not in line for line in shown)


class Terminal(io.StringIO):
    """Lines that a person types, in front of a terminal."""

    def isatty(self) -> bool:
        return True


def talk(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], typed: str, *words: str
) -> tuple[Any, ...]:
    """The exit status of a chat at a terminal, its answers, and what stands on stderr."""
    capfd.readouterr()
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    code = main(["chat", "--base", "instruct", "--temperature", "1", "--seed", "3", *words])
    shown = capfd.readouterr()
    return code, [line for line in re.split("\n|> ", shown.out) if line], shown.err.splitlines()


def test_chat_at_a_terminal_says_how_to_leave_and_does_not_answer_an_empty_line(instruct, capfd, monkeypatch):
    code, answers, said = talk(monkeypatch, capfd, "\n  \nhello\n\n")
    assert (code, len(answers), len(said)) == (0, 1, 1)
    assert re.fullmatch("minilora: Ctrl-.* the chat, Ctrl-C an answer", said[0])
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", "--base", "instruct", "--temperature", "1", "--seed", "3"]) == 0
    assert capfd.readouterr() == (answers[0] + "\n", "")


def test_a_conversation_beyond_the_context_is_a_line_and_a_shorter_message_is_answered(instruct, capfd, monkeypatch):
    code, answers, said = talk(monkeypatch, capfd, "a" * 70 + "\nhello\n" + "b" * 60 + "\nso\n", "--tokens", "5")
    assert (code, len(answers)) == (0, 2)
    assert len(said) == 3
    assert re.search("conversation is 73 tokens long, and the model reads 64: say it in fewer words", said[1])
    code, answers, said = talk(monkeypatch, capfd, "a" * 58 + "\nb\n", "--tokens", "50")
    assert len(answers[0]) <= 3  # all the room that there was
    assert re.search("conversation is 6. tokens long", said[1])
    monkeypatch.setattr("sys.stdin", io.StringIO("a" * 70 + "\n"))
    assert_refused(instruct.parent, capfd, ["chat", "--base", "instruct"], "say it in fewer words, or start a new one")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_ctrl_c_ends_an_answer_and_then_the_chat(instruct):
    import fcntl
    import pty
    import select
    import termios

    config = instruct / "config.json"
    edit_json(config, max_position_embeddings=10**5)  # for an answer without end
    settings = {"chat_template": "{{ messages[-1].content }}"}
    (instruct / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "minilora", "chat", "--base", str(instruct), "--tokens", "90000"]
    command += ["--temperature", "1"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=outside(), start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(theirs)

        def shown(until: str) -> str:
            text, end = "", time.monotonic() + 60
            while not re.search(until, text):
                if not select.select([ours], [], [], 30)[0] or time.monotonic() > end:
                    process.kill()
                    pytest.fail(f"no {until!r} after {text[-200:]!r}")
                text += os.read(ours, 1024).decode()
            return text

        try:
            assert "Ctrl-D ends the chat" in shown("> $")
            os.write(ours, b"hello\n")
            shown(".{30}")
            os.write(ours, b"\x03")
            shown("\n> $")
            time.sleep(0.5)  # Python has shown its prompt, and does not yet read: it would not hear of a signal now
            os.write(ours, b"\x03")
            said = shown("minilora: .*\n")
            assert process.wait(10) == 130
        finally:
            process.kill()
    assert said.splitlines()[-1] == "minilora: stopped"
    os.close(ours)


def prompts_of(path: str, *prompts: str) -> list[str]:
    Path(path).write_text("".join(json.dumps({"ask": prompt, "n": 1}) + "\n" for prompt in prompts), encoding="utf-8")
    return ["--data", path, "--text", "ask"]


def test_each_prompt_of_a_file_gives_a_line_in_the_order_of_the_rows(here, capfd):
    asked = ["def ", "é", "x = [\n", "a longer one, for the others to be padded"]
    words = ["generate", "--base", "base", "--adapter", "adapter", *prompts_of("p.jsonl", *asked), "--tokens", "9"]
    outputs = []
    for batch in ("1", "3"):
        assert main([*words, "--batch", batch]) == 0
        shown = capfd.readouterr()
        assert re.fullmatch(r"minilora: 4 prompts, 36 tokens in [\d.]+ s, \d+ a second", lines(shown.err)[-1])
        outputs.append(shown.out)
    assert outputs[0] == outputs[1]
    found = [json.loads(line) for line in outputs[0].splitlines()]
    assert [row["prompt"] for row in found] == asked
    assert {(row["tokens"], row["end"]) for row in found} == {(9, "length")}
    for row in found:
        assert main([*GENERATE[:5], "--prompt", row["prompt"], "--tokens", "9"]) == 0
        assert capfd.readouterr().out == row["prompt"] + row["continuation"] + "\n"
    assert main([*words, "--out", "out.jsonl"]) == 0
    assert Path("out.jsonl").read_text(encoding="utf-8") == outputs[0]
    assert not Path("out.jsonl.partial").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give either --prompt TEXT or --data FILE"),
        (["--prompt", "x", "--data", "p.jsonl"], "give either"),
        (["--prompt", "x", "--out", "y"], "--out goes with --data: leave it out"),
        (["--prompt", "x", "--chat"], "--chat goes with --data"),
        (["--data", "p.jsonl", "--text", "asks"], "has no 'asks': did you mean 'ask'"),
        (["--data", "empty.jsonl", "--text", "ask"], "'ask' is empty in 1 row, on line 2: fill"),
        (["--data", "p.jsonl", "--text", "ask", "--resume"], "--resume goes on with the lines of --out"),
        (["--data", "p.jsonl", "--text", "ask", "--out", "p.jsonl"], "p.jsonl is there already: choose another name"),
        (["--data", "p.jsonl", "--text", "ask", "--out", "left"], "left.partial holds 1 line of an earlier run"),
        (["--data", "p.jsonl", "--text", "ask", "--out", "left", "--resume"], "line 1 is not of prompt 1: --resume"),
        (["--data", "p.jsonl", "--text", "ask", "--chat"], "no chat template"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_before_a_model_is_read(words, says, here, capfd, monkeypatch):
    prompts_of("p.jsonl", "a", "b")
    prompts_of("empty.jsonl", "a", " ")
    Path("left.partial").write_text('{"prompt": "b"}\n', encoding="utf-8")
    monkeypatch.setattr("minilora.cli.commands.generate.load_model", None)
    assert_refused(here, capfd, ["generate", "--base", "base", *words], says)


def test_a_run_that_is_stopped_keeps_its_lines_and_goes_on_to_the_same_bytes(here, capfd, monkeypatch):
    words = ["generate", "--base", "base", *prompts_of("p.jsonl", "a", "bcd", "ef", "g"), "--tokens", "6"]
    words += ["--temperature", "1", "--batch", "1"]
    assert main([*words, "--out", "whole.jsonl"]) == 0
    monkeypatch.setattr("minilora.jobs.generation.POOL", 1)
    original, calls = jobs_generation.continuations, itertools.count(1)

    def stopped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(jobs_generation, "continuations", stopped)
    assert main([*words, "--out", "out.jsonl"]) == 130
    says = "stopped; 2 of 4 prompts are in out.jsonl.partial; the same command with --resume goes on"
    assert lines(capfd.readouterr().err)[-1] == f"minilora: {says}"
    with open("out.jsonl.partial", "ab") as file:
        file.write(b'{"prompt": "ef", "conti')  # as a process that is killed leaves it
    assert main([*words, "--out", "out.jsonl", "--resume"]) == 0
    assert lines(capfd.readouterr().err)[-1].startswith("minilora: 2 prompts, 12 tokens")
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not Path("out.jsonl.partial").exists()


def test_prompts_that_are_messages_are_answered_as_in_a_chat(instruct, capfd, monkeypatch):
    words = ["--base", "instruct", "--tokens", "5"]
    assert main(["generate", *words, *prompts_of("p.jsonl", "hello", "a b"), "--chat"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["prompt"] for row in found] == ["hello", "a b"]
    for row in found:
        monkeypatch.setattr("sys.stdin", io.StringIO(row["prompt"]))
        assert main(["chat", *words]) == 0
        assert capfd.readouterr().out == row["continuation"] + "\n"


def test_generate_streams_what_a_tokenizer_says(instruct, capfd):
    assert main(["generate", "--base", "instruct", "--prompt", "abc", "--tokens", "4"]) == 0
    assert capfd.readouterr().out.startswith("abc")


def test_a_text_that_is_stopped_has_its_line_to_itself(instruct, capfd, monkeypatch):
    def stopped(*arguments: Any, **options: Any) -> Any:
        yield "de"
        raise KeyboardInterrupt

    monkeypatch.setattr("minilora.models.generation.stream", stopped)
    assert main(["generate", "--base", "instruct", "--prompt", "abc"]) == 130
    assert capfd.readouterr() == ("abcde\n", "minilora: stopped\n")


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(here, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("minilora.cli.commands.chat.load_model", None)
    assert_refused(here, capfd, ["chat"], "no chat template")
