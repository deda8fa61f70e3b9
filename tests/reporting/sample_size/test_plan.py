"""`premed plan` on made-up runs: what it takes from a store, says, draws, and refuses."""

import json
import re

import numpy as np
import pytest
from scipy import stats
from support.comparing import add, leave

from premed.cli.options import as_json_value
from premed.errors import UserError
from premed.reporting.comparison.compare import compare
from premed.reporting.formatting import number, p_value
from premed.reporting.refusals import refuse_picture
from premed.reporting.sample_size import picture, plan, terminal
from premed.reporting.sample_size.components import Stated
from premed.reporting.sample_size.power import Design, layout, smallest_difference
from premed.reporting.sample_size.settings import PlanSettings

SHARES = (0.1, 0.25, 0.5, 1.0)


def only(result):
    ((found,),) = [block.comparisons for block in result.blocks]
    return found


def printed(capsys, result):
    terminal.show(result)
    return capsys.readouterr().out


def difference_of(store):
    (arm,) = [arm for arm in compare(store).tasks[0].blocks[0].rows if not arm.is_baseline]
    return arm.scores["dice"].difference


# ---- from runs


def test_it_plans_for_the_difference_and_the_test_of_compare(varied):
    found, difference = only(plan.from_store(varied, PlanSettings())), difference_of(varied)
    assert (found.difference, found.interval) == (difference.value, difference.interval)
    assert found.planned == abs(difference.value) and found.verdict == difference.verdict
    assert found.false_claim.chance == pytest.approx(difference.p / 2)
    assert (found.now.pretrainings, found.now.finetunings, found.now.patients) == (4, 1, 12)
    assert [need.what for need in found.needs][:3] == [
        "pre-trainings, a fine-tuning each", "fine-tunings of each pre-training", "test patients",
    ]  # fmt: skip


def test_hours_are_those_of_the_stages_in_the_store(varied):
    """A pre-training takes an hour and a fine-tuning and a test a minute each, on 2 CPUs."""
    found = only(plan.from_store(varied, PlanSettings(margin=0.02)))
    need = found.needs[0]
    assert need.needed > 4 and need.device == "CPU"
    assert need.hours == pytest.approx((need.needed - 4) * (2 + 2 * 2 * 2 / 60))


def test_of_one_pre_training_it_says_so_guesses_and_offers_nothing_but_others(shared, capsys):
    result = plan.from_store(shared, PlanSettings())
    found = only(result)
    assert found.is_one_pretraining and found.now.pretrainings == 1 and found.now.finetunings == 4
    assert found.rows[0].known.startswith("guess: as much as these seeds")
    assert found.false_claim.any_pretraining > found.false_claim.chance
    assert [need.needed is None for need in found.needs[1:3]] == [True, True]
    text = printed(capsys, result)
    assert "mae: of one pre-training; what is shown holds for this one, not for the method" in text
    assert text.count("for this pre-training alone") == 2 and "another pre-training, too" in text


def test_a_margin_is_planned_for_in_place_of_what_was_seen(varied, capsys):
    result = plan.from_store(varied, PlanSettings(margin=0.5))
    found = only(result)
    assert found.planned == 0.5 and found.chance == pytest.approx(1.0)
    assert all(need.hours == 0 for need in found.needs if need.most)
    assert found.false_claim.below_margin > 0.99
    assert "What would show a difference of 0.5" in printed(capsys, result)


def test_several_fine_tunings_of_several_pre_trainings_are_told_apart(store, put):
    for seed in range(4):
        put("none", seed, 0.6)
        for pretrain_seed in range(3):
            put("mae", seed, 0.65, noise_seed=500 + 10 * seed + pretrain_seed, pretrain_seed=pretrain_seed)
    found = only(plan.from_store(store, PlanSettings(margin=0.01)))
    assert (found.now.pretrainings, found.now.finetunings) == (3, 4)
    assert found.rows[1].known == "estimated from 9 degrees of freedom"
    assert found.needs[0].what == "pre-trainings, 4 fine-tunings each"


def test_baselines_with_seeds_of_their_own_are_planned_for_too(store, put):
    for seed in range(3):
        put("none", seed + 10, 0.6)
        put("mae", seed, 0.65, pretrain_seed=seed)
    found = only(plan.from_store(store, PlanSettings(margin=0.01)))
    assert found.num_seeds == 3 and found.components.baseline.finetuning >= 0
    assert not found.components.baseline.is_pretrained and found.components.arm.is_pretrained


def test_with_several_comparisons_the_smallest_difference_after_holm_is_larger(varied, put, capsys):
    for seed in range(4):
        put("unimiss", seed, 0.63, noise_seed=900 + seed, pretrain_seed=seed)
    result = plan.from_store(varied, PlanSettings())
    ((one, two),) = [block.comparisons for block in result.blocks]
    assert one.smallest_corrected > one.smallest and two.smallest_corrected > two.smallest
    assert "2 comparisons: premed compare corrects p for all of them" in printed(capsys, result)


def test_too_few_seeds_are_refused_with_what_to_do_and_planned_with_what_is_stated(store, put, capsys):
    for seed in range(2):
        put("none", seed, 0.6)
        put("mae", seed, 0.63, pretrain_seed=seed)
    with pytest.raises(
        UserError, match="^plan: nothing to plan with: mae at 100 %: 2 seeds, .* takes 3; .* --sd-finetuning and"
    ):
        plan.from_store(store, PlanSettings())
    result = plan.from_store(store, PlanSettings(stated=Stated(0.01, 0.01)))
    assert [row.known for row in only(result).rows][:2] == ["stated", "stated"]
    assert "fewer than 3 seeds; what is shown holds for these seeds alone" in printed(capsys, result)


def test_a_store_without_a_baseline_is_refused_in_a_line(store, put):
    for seed in range(3):
        put("mae", seed, 0.6)
    with pytest.raises(UserError, match="no run of none to plan against; --baseline names another$") as caught:
        plan.from_store(store, PlanSettings())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--baseline imagenet: no run is called so; there are mae"):
        plan.from_store(store, PlanSettings(), baseline="imagenet")


def test_where_no_arm_stands_beside_a_baseline_that_is_said_and_not_what_was_left_out_alone(store, put):
    put("none", 0, 0.6), put("none", 0, 0.6), put("mae", 0, 0.6, fraction=0.1)
    with pytest.raises(UserError) as caught:
        plan.from_store(store, PlanSettings())
    why = "plan: nothing to plan with: no arm stands beside a baseline; 1 run there twice"
    assert str(caught.value).startswith(why)


def test_a_task_whose_runs_cannot_be_compared_is_left_out_with_a_word_and_the_others_are_planned(varied):
    for epochs in (4, 8):
        add(varied, "none", 0, change={"task": {"name": "btcv"}, "training": {"epochs": epochs}})
    result = plan.from_store(varied, PlanSettings())
    assert only(result).difference and result.notes[-1].startswith("left out: btcv: runs differ in finetune.epochs")


# ---- labels


@pytest.fixture
def curve(store, put):
    """Four shares of the labels, along a law whose arms come together."""
    for share in SHARES:
        for seed in range(3):
            put("none", seed, 0.8 - 0.08 * share**-0.5, 1000 * share + seed, fraction=share)
            put("mae", seed, 0.8 - 0.05 * share**-0.5, 2000 * share + seed, fraction=share, pretrain_seed=seed)
    return store


def test_four_shares_of_the_labels_give_a_forecast_of_both_arms_and_of_their_difference(curve, tmp_path, capsys):
    for i, run in enumerate(curve.search({"premed.kind": "finetune"})):
        leave(curve, run.run_id, tmp_path / str(i), result={"num_cases": 120})
    result = plan.from_store(curve, PlanSettings())
    (block,) = result.blocks
    none, mae = block.forecasts
    for forecast, factor in ((none, 0.08), (mae, 0.05)):
        twice = forecast.points[0]
        assert twice.value == pytest.approx(0.8 - factor * 2**-0.5, abs=0.03)
        assert twice.interval[0] < twice.value < twice.interval[1] and twice.images == 240
    assert mae.differences[0].value == pytest.approx(mae.points[0].value - none.points[0].value)
    assert none.differences == ()
    rows = {plan.label_fraction: plan.needs[-1].what.startswith("labels") for plan in block.comparisons}
    assert rows == {0.1: False, 0.25: False, 0.5: False, 1.0: True}
    text = printed(capsys, result)
    assert "Forecast at more labels" in text and "2 × 100 %" in text and "240" in text


def test_three_shares_of_the_labels_are_refused_by_name(store, put, capsys):
    for share in SHARES[1:]:
        for seed in range(3):
            put("none", seed, 0.6, 1000 * share + seed, fraction=share)
            put("mae", seed, 0.65, 2000 * share + seed, fraction=share, pretrain_seed=seed)
    text = printed(capsys, plan.from_store(store, PlanSettings()))
    assert "no forecast of mae: 3 of 4 shares of the labels that a power law needs" in text
    assert "Forecast at more labels" not in text


def test_a_score_that_does_not_rise_with_labels_has_no_forecast(store, put):
    for share in SHARES:
        for seed in range(3):
            put("none", seed, 0.8 - 0.1 * share, seed, fraction=share)
    for seed in range(3):
        put("mae", seed, 0.7, fraction=1.0, pretrain_seed=seed)
    (block,) = plan.from_store(store, PlanSettings()).blocks
    assert [forecast.refused for forecast in block.forecasts] == [
        "the score does not improve with more labels, so there is no law to continue"
    ]


# ---- from guesses

GUESSES = PlanSettings(margin=0.05, stated=Stated(0.01, 0.01))


def test_guesses_are_the_components_and_those_that_are_not_stated_are_named(capsys):
    result = plan.from_guesses(GUESSES, 0.05, 40, 4)
    found = only(result)
    side = found.components.difference
    assert (side.pretraining, side.finetuning, side.finetuning_patients) == pytest.approx((1e-4, 1e-4, 25e-4))
    assert found.components.patients == pytest.approx(25e-4)
    error = np.sqrt((2e-4 + 25e-4 / 40) / 4 + 25e-4 / 40)
    assert found.smallest > 2.8 * error  # that of a test with many degrees of freedom
    text = printed(capsys, result)
    assert "guess: as much as test patients" in text and "hours" not in text and "nan" not in text
    assert only(plan.from_guesses(PlanSettings(stated=Stated(None, 0.02)), 0.05, 40)).components.difference.pretraining == pytest.approx(4e-4)  # fmt: skip  # noqa: E501


def test_guesses_of_nothing_but_patients_are_a_t_test():
    settings = PlanSettings(margin=0.03, stated=Stated(0.0, 0.0))
    found = only(plan.from_guesses(settings, 1e-4, 10, 3))
    assert found.chance == pytest.approx(1.0)
    error = 1e-4 * np.sqrt(1 / 10 + 1 / 30)
    assert found.smallest == pytest.approx(error * (stats.t.ppf(0.975, 9) + stats.t.ppf(0.8, 9)), rel=0.2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PlanSettings(power=1.0), "--power 1: write a share between 0.05 and 1, as --power 0.8"),
        (lambda: PlanSettings(power=float("nan")), "--power nan"),
        (lambda: PlanSettings(margin=0.0), "--margin 0: write a number above 0"),
        (lambda: PlanSettings(margin=float("inf")), "--margin inf"),
        (lambda: PlanSettings(stated=Stated(-0.1)), "--sd-pretraining -0.1: write a number 0 or more"),
        (lambda: PlanSettings(stated=Stated(None, float("nan"))), "--sd-finetuning nan"),
        (lambda: plan.from_guesses(PlanSettings(), None, 40), "--sd-patients is missing"),
        (lambda: plan.from_guesses(PlanSettings(), 0.05, 40), "--sd-finetuning is missing"),
        (lambda: plan.from_guesses(GUESSES, 0.0, 40), "--sd-patients 0: write a number above 0"),
        (lambda: plan.from_guesses(GUESSES, 0.05, 1), "--n-patients 1: one patient shows no variance"),
        (lambda: plan.from_guesses(GUESSES, 0.05, 40, 2), "--n-seeds 2: the test takes 3 seeds or more"),
    ],
)
def test_what_cannot_be_is_one_line(make, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- JSON and the picture


def test_json_holds_all_of_it(curve):
    result = json.loads(json.dumps(as_json_value(plan.from_store(curve, PlanSettings(margin=0.02))), allow_nan=False))
    (block,) = result["blocks"]
    assert (result["power"], result["level"], result["margin"]) == (0.8, 0.05, 0.02)
    assert block["comparisons"][0]["components"]["arm"]["pretraining_patients"] > 0
    assert {"what", "now", "needed", "cautious", "hours", "device"} <= block["comparisons"][0]["needs"][0].keys()
    assert block["forecasts"][1]["points"][0]["interval"][0] > 0


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG")])
def test_the_picture_is_of_the_kind_that_its_name_says_and_the_same_each_time(varied, tmp_path, name, begins):
    result = plan.from_store(varied, PlanSettings())
    picture.write(result, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    drawing = picture.draw(result)
    assert content.startswith(begins) and content == (drawing.png() if name.endswith("png") else drawing)


def test_the_picture_s_lines_are_the_smallest_differences_for_these_patients_twice_and_four_times_as_many(varied):
    result = plan.from_store(varied, PlanSettings())
    found = only(result)
    (axes,) = picture.draw(result).figure.axes
    *curves, planned = axes.get_lines()
    for curve, times in zip(curves, (1, 2, 4), strict=True):
        for number_of, drawn in zip(*curve.get_data(), strict=True):
            design = Design(int(number_of), 1, times * found.now.patients)
            assert drawn == smallest_difference(layout(found.components, design), result.power)
    assert list(planned.get_ydata()) == [found.planned] * 2


def test_the_terminal_s_rows_have_the_plan_s_numbers(varied, capsys):
    result = plan.from_store(varied, PlanSettings())
    found = only(result)
    lines = [line.split() for line in printed(capsys, result).splitlines()]
    (shown,) = [line for line in lines if f"{found.now.pretrainings}" in line and "×" in line and "mae" in line]
    assert shown[-2:] == [number(found.smallest), f"{found.chance:.0%}"], "one comparison has no column of Holm's"
    claim = found.false_claim
    assert any(line[-2:] == [p_value(claim.chance), p_value(claim.patients_only)] for line in lines if "mae" in line)
    for need in found.needs:
        cells = [str(need.now)] + [
            f"{each:,}" for each in (need.needed, need.cautious) if need.patients is None and each
        ]
        assert any(" ".join(cells) in " ".join(line) for line in lines), need


def test_a_picture_that_cannot_be_is_refused_before_any_work(curve, tmp_path):
    for path, words in ((tmp_path / "a.pdf", "ends in .svg or .png"), (tmp_path / "no" / "a.svg", "does not exist")):
        with pytest.raises(UserError, match=words):
            refuse_picture(path)
    result = plan.from_store(curve, PlanSettings())
    many = type(result)(0.8, 0.05, None, [*result.blocks] * 2, [])
    with pytest.raises(UserError, match="--picture: 8 comparisons, and a picture holds 6; choose by --task or --where"):
        picture.draw(many)
