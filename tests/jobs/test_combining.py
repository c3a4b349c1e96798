"""The commands combine and prune: what they say, write and refuse."""

import json
import shutil

import numpy as np
import pytest
from commands import RUN, assert_refused, make_base, make_inputs

import minilora
from minilora.adapters.peft import load_adapter
from minilora.cli import main
from minilora.jobs.combining import combine_adapters
from minilora.jobs.pruning import prune
from minilora.models.pretrained import load_pretrained
from minilora.models.tokenizer_files import read_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small base, two texts, and an adapter of each."""
    folder = make_inputs(tmp_path_factory.mktemp("combining") / "made")
    (folder / "numbers.txt").write_text("".join(f"{i} and {i * i}\n" for i in range(400)))
    for text, out in (("words.txt", "a"), ("numbers.txt", "b")):
        words = ["--base", folder / "base", "--data", folder / text, "--out", folder / out, "--lr", "0.05"]
        assert main(["finetune", *map(str, words), *RUN, "--steps", "12"]) == 0
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


TEXTS = ["words.txt", "numbers.txt"]


def test_the_losses_are_those_of_each_adapter_and_of_each_way(here, tmp_path):
    shown = []
    result = combine_adapters(["a", "b"], base="base", data=TEXTS, plot=str(tmp_path / "x.png"), show=shown.append)
    assert shown == [result]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    rows = {row["what"]: row for row in result["losses"]}
    assert [*rows][:3] == ["the base", "a", "b"]
    assert len(rows) == 3 + 11
    for i, name in enumerate("ab"):
        assert rows[name]["bits"][i] < rows["the base"]["bits"][i]
    assert rows["cat"]["off"] < 1e-6
    assert rows["linear"]["bits"] != rows["cat"]["bits"]
    assert (rows["cat"]["rank"], rows["svd"]["rank"]) == (4, 2)
    assert rows["svd"]["off"] == result["off"] == pytest.approx(result["least"], rel=1e-5)
    assert result["cosines"][0]["adapters"] == ["a", "b"]


def test_what_is_off_is_printed_before_the_adapter_is_written_and_it_is_the_sum(here, tmp_path, capfd):
    out = str(tmp_path / "both")
    words = ["combine", "a", "b", "--base", "base", "--weights", "1", "-0.5", "--how", "cat", "--out", out]
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "cat: 7 layers of rank 4, 0.0% of ‖Σ w ΔW‖ off the sum" in printed
    assert printed.index("off the sum") < printed.index("written to")
    models = {name: load_pretrained("base") for name in ("a", "b", out)}
    for name, model in models.items():
        assert load_adapter(model, name) == ""
    D = {name: model["block_0.attention.q_proj"].delta() for name, model in models.items()}
    np.testing.assert_allclose(D[out], D["a"] - 0.5 * D["b"], rtol=1e-5, atol=1e-7)


def test_a_way_that_is_not_for_these_adapters_says_why_in_its_row(here, tmp_path, capfd):
    assert main(["combine", "a", "--base", "base", "--how", "svd", "--rank", "1", "--out", str(tmp_path / "one")]) == 0
    capfd.readouterr()
    words = ["combine", str(tmp_path / "one"), "b", "--base", "base", "--evaluate", *TEXTS]
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert "linear: block_0.attention.q_proj: its adapters have the ranks 1, 2" in printed
    assert main([*words, "--json"]) == 0
    assert "why_not" in json.loads(capfd.readouterr().out)["losses"][5]


@pytest.mark.slow
def test_one_text_may_be_that_of_both_adapters_and_a_folder_may_have_the_name_of_a_way(here, tmp_path):
    shutil.copytree("a", "svd", dirs_exist_ok=True)
    result = combine_adapters(["svd", "b"], base="base", data=[TEXTS[0]] * 2, plot=str(tmp_path / "x.png"))
    rows = {row["what"]: row for row in result["losses"][3:]}
    assert not any("why_not" in row for row in rows.values())
    assert rows["svd"]["off"] == result["off"]
    assert all(len({*row["bits"]}) == 1 < len(row["bits"]) for row in result["losses"])


def test_what_is_combined_keeps_the_tokens_that_were_added_and_others_are_refused(here, tmp_path, capfd):
    make_base(here / "untied", tied=False)
    for name, token in (("one", "self."), ("two", "self."), ("other", "return")):
        (tmp_path / "tokens.txt").write_text(token)
        words = [
            "--base",
            "untied",
            "--data",
            TEXTS[0],
            "--add-tokens",
            tmp_path / "tokens.txt",
            "--out",
            tmp_path / name,
        ]
        assert main(["finetune", *map(str, words), *RUN]) == 0
    one, two, other, both = (str(tmp_path / name) for name in ("one", "two", "other", "both"))
    combine_adapters([one, two], rank=2, out=both)
    assert read_tokenizer(both).encode("self.", special=False).tolist() == [256]
    with pytest.raises(ValueError, match=r"other has other tokens than .*one: leave one of them out"):
        combine_adapters([one, other], rank=2)


REFUSED = {
    "1 weight for 2 adapters": ["a", "b", "--weights", "1"],
    "1 text for 2 adapters": ["a", "b", "--evaluate", "words.txt"],
    "the figure is of losses": ["a", "b", "--plot", "x.png"],
    "a is given twice: give it once": ["a", "a"],
    "rank 5 is above 4, which the sum has already: give 4 or less": ["a", "b", "--rank", "5"],
    "ties needs a density": ["a", "b", "--how", "ties", "--out", "new"],
    "'tie' is not known: did you mean 'ties'": ["a", "b", "--how", "tie"],
    "'x' is not a number": ["a", "b", "--weights", "1", "x"],
    "was made for another base": ["a", "b", "--base", "other"],
    "already holds": ["a", "b", "--out", "a"],
}


@pytest.mark.parametrize("says", REFUSED)
def test_bad_input_is_refused_in_a_line_and_nothing_is_written(here, capfd, says):
    if not (here / "other").exists():
        make_base(here / "other", seed=2)
    words = REFUSED[says] if "--base" in REFUSED[says] else [*REFUSED[says], "--base", "base"]
    assert_refused(here, capfd, ["combine", *words], says)


def test_singular_values_change_the_rank_and_entries_the_number_of_zeros(here, tmp_path, capfd):
    report = prune("a", "words.txt", base="base", plot=str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    values, entries = ([row for row in report["rows"] if row["how"] == how] for how in ("svd", "magnitude_prune"))
    assert [row["rank"] for row in values] == [2, 1]
    assert [row["rank"] for row in entries] == [2, 2]
    assert [row["zeros"] for row in values] == [0, 0]
    assert [row["zeros"] for row in entries] == [0, pytest.approx(0.5, abs=0.01)]
    whole, half = values
    assert half["bytes"] * 2 == whole["bytes"]
    assert entries[1]["bytes"] == whole["bytes"] > entries[1]["packed"] > half["bytes"]
    assert half["bits"] > whole["bits"]
    assert main(["prune", "a", "--base", "base", "--data", "words.txt"]) == 0
    assert "singular values" in capfd.readouterr().out


def test_an_adapter_whose_update_is_0_is_not_pruned(here, tmp_path, capsys):
    model = minilora.load_pretrained(here / "base")
    minilora.attach_lora(model, ["q_proj"], r=2, rng=0)
    minilora.save_adapter(model, tmp_path / "new")
    assert main(["prune", str(tmp_path / "new"), "--base", "base", "--data", "words.txt"]) == 2
    assert "its ΔW is 0, so there is nothing to cut" in capsys.readouterr().err
