"""The mutation run: every small mistake in a gradient of the ops is found, or there is a reason why it cannot be."""

import json
import time
from collections.abc import Sequence

import examples
import pytest

from minilora import ops
from minilora.cli import main
from minilora.verify import mutation, op_cases
from minilora.verify.mutation import (
    EQUIVALENT,
    Mutant,
    Outcome,
    callers,
    functions,
    in_place_of,
    killed,
    mutants,
    mutation_run,
    unexplained,
)

SAMPLE = 20  # the slow run takes all of them


def said(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    return [(outcome.function, outcome.edit, outcome.line) for outcome in outcomes]


def test_a_fixed_sample_of_mutants_is_killed_or_survives_for_a_reason_in_seconds():
    start = time.process_time()
    outcomes = mutation_run(SAMPLE)
    assert time.process_time() - start < 6
    assert len(outcomes) == SAMPLE
    assert unexplained(outcomes) == []
    assert sum(outcome.killed for outcome in outcomes) > SAMPLE / 2


@pytest.mark.slow
def test_every_mutant_is_killed_or_survives_for_a_reason_and_every_reason_is_still_needed():
    outcomes = mutation_run()
    assert unexplained(outcomes) == []
    survivors = [outcome for outcome in outcomes if not outcome.killed]
    for (function, written), reason in EQUIVALENT.items():
        assert any(o.function == function and written in o.line and o.reason == reason for o in survivors), written
    unedited = set(functions()) - {outcome.function for outcome in outcomes}
    # the first only moves numbers, and the others call functions that are edited: no sign, factor or sum of their own
    assert unedited == {
        "select_backward", "loha_backward", "convolution_backward", "lora_convolution_backward",
        "lora_convolution_B_gradients", "embedding_bag_backward",
    }  # fmt: skip
    assert len(said(outcomes)) == len(set(said(outcomes)))


@pytest.mark.parametrize("name", examples.some_of(functions(), 6))
def test_the_functions_themselves_survive_or_a_kill_would_mean_nothing(name):
    cases_of_it = callers(name, 0)
    assert cases_of_it
    assert not killed(Mutant(name, "", "", getattr(ops, name)), examples.some_of(cases_of_it), 0)


@pytest.mark.slow
def test_a_sample_is_the_same_every_time_and_another_for_another_seed():
    first = mutation_run(12, only="lora")
    assert said(first) == said(mutation_run(12, only="lora"))
    assert said(first) != said(mutation_run(12, seed=1, only="lora"))
    assert len({function for function, _, _ in said(first)}) > 3


def test_the_mutants_make_the_mistakes_people_make():
    edits = " | ".join(mutant.edit for name in functions() for mutant in mutants(name))
    mistakes = ("the term", "the factor", "transposed", "swapped", "were a mean", "sign", "another axis", "1 were 2")
    assert [mistake for mistake in mistakes if mistake not in edits] == []


def test_what_is_done_in_place_is_mutated_too():
    lines = [mutant.line for mutant in mutants("layer_norm_backward")]
    assert {"dx = dx", "dx = dx + mean_dxhat", "dx = dx * sigma"} <= set(lines)


def test_a_mutant_stands_in_the_package_and_in_its_file_and_both_are_put_back_even_after_an_error():
    original, other = ops.gelu_backward, lambda dy, slope: dy
    file = mutation.sys.modules[original.__module__]

    def run() -> None:
        with in_place_of("gelu_backward", other):
            assert ops.gelu_backward is file.gelu_backward is other
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert ops.gelu_backward is file.gelu_backward is original
    before = functions()
    mutation_run(5, only="gelu")
    assert functions() == before


def test_cases_that_are_too_weak_let_a_mutant_survive_without_a_reason(monkeypatch, capsys):
    assert main(["verify", "--mutants", "--only", "linear"]) == 0
    assert "0 survive, 0 of them without a reason" in capsys.readouterr().out
    monkeypatch.setattr(op_cases, "SIZES", ((1,),))  # with every size 1, nothing is seen of a transpose
    assert main(["verify", "--mutants", "--only", "linear"]) == 1
    shown = capsys.readouterr().out
    assert "NO REASON" in shown
    assert ", 0 of them without a reason" not in shown


@pytest.mark.slow
def test_the_command_counts_a_sample_and_gives_it_as_json(capsys):
    assert main(["verify", "--mutants", "--sample", "5", "--only", "lora"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("5 mutants, ")
    assert main(["verify", "--mutants", "--sample", "5", "--only", "lora", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [set(entry) for entry in found] == [{"function", "edit", "line", "killed", "reason"}] * 5
