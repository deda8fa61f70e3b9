"""`premed plan` in one sentence: it says nothing that the tables below it do not."""

import json
from dataclasses import replace

import pytest

from premed.cli.options import as_json_value
from premed.reporting.sample_size import plan, terminal
from premed.reporting.sample_size.components import Stated
from premed.reporting.sample_size.conclusion import outlook
from premed.reporting.sample_size.needs import LABELS
from premed.reporting.sample_size.result import Need
from premed.reporting.sample_size.settings import PlanSettings


def sentence(result):
    (block,) = result.blocks
    return block.conclusion, block.comparisons[0]


def test_it_stands_above_the_tables_and_in_json(varied, capsys):
    result = plan.from_store(varied, PlanSettings())
    words, _ = sentence(result)
    terminal.show(result)
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{words}. ")
    assert json.loads(json.dumps(as_json_value(result)))["blocks"][0]["conclusion"] == words


def test_a_difference_that_is_too_small_is_told_with_what_it_takes(varied):
    words, found = sentence(plan.from_store(varied, PlanSettings(margin=0.01)))
    assert "mae against none with 100 % of the labels: 4 pre-trainings with 1 fine-tuning each and 12 test" in words
    assert f"shows a difference of {found.smallest:.3f} or more with a power of 80 %; " in words
    assert f"one of 0.01 would be shown with a chance of {100 * found.chance:.0f} %; it takes " in words
    possible = [need for need in found.needs if need.needed]
    assert possible and all(f"{need.needed:,} {need.what}" in words for need in possible if need.patients is None)
    assert all(f"(cautiously {need.cautious:,})" in words for need in possible if need.cautious)


def test_what_compare_says_of_the_scores_is_said_here_too(varied, store, put):
    words, _ = sentence(plan.from_store(varied, PlanSettings()))
    assert "ignores the image" not in words
    for strategy in ("none", "mae"):
        for seed in range(4):
            put(strategy, seed, 0.3 + 0.01 * seed, pretrain_seed=seed, change={"task": {"name": "poor"}})
    (poor,) = plan.from_store(store, PlanSettings(), task="poor").blocks
    assert poor.conclusion.endswith(
        "; no arm beats an answer that ignores the image (0.500), so train longer before you conclude"
    )


def test_a_difference_that_is_large_enough_takes_nothing_more(varied):
    words, found = sentence(plan.from_store(varied, PlanSettings(margin=0.2)))
    assert found.chance > 0.8 and "so this design is enough for it" in words and "it takes" not in words


def test_of_one_pre_training_it_says_that_the_power_is_for_this_one(shared):
    assert "with a power of 80 %, for this one pre-training; " in sentence(plan.from_store(shared, PlanSettings()))[0]


def test_of_several_comparisons_it_is_about_the_likeliest(varied, put):
    for seed in range(4):
        put("unimiss", seed, 0.605, pretrain_seed=seed)
    (block,) = plan.from_store(varied, PlanSettings()).blocks
    best = max(block.comparisons, key=lambda each: each.chance)
    assert f"{best.label} against none" in block.conclusion and "(of 2 comparisons the likeliest" in block.conclusion


def test_of_guesses_without_a_margin_it_names_the_option():
    settings = PlanSettings(stated=Stated(None, 0.01))
    words, found = sentence(plan.from_guesses(settings, 0.05, 40))
    assert words.startswith("From guesses, this design (3 pre-trainings with 1 fine-tuning each and 40 test patients) ")
    assert f"{found.smallest:.3f} or more" in words and words.endswith("--margin names one")


@pytest.mark.parametrize("others", [True, False])
def test_labels_that_there_are_already_are_not_called_one_times_the_labels(varied, others):
    """The law through all shares may have a larger difference at the largest than the one that was measured there."""
    _, found = sentence(plan.from_store(varied, PlanSettings(margin=0.01)))
    needs = [need for need in found.needs if others and need.needed]
    labels = Need(LABELS, 1, 1, None, 10, None, 0.0, "CPU", "by the forecast")
    words = outlook(replace(found, needs=[*needs, labels]), 0.8, 0.01)
    assert ("it takes" in words) is others and "times the labels" not in words
    assert words.endswith("; the forecast's own difference at the labels that were used is large enough to be shown")
    more = outlook(replace(found, needs=[*needs, replace(labels, needed=2)]), 0.8, 0.01)
    assert more.endswith("2 times the labels")
