"""What a comparison of several folds prints and writes, and what it costs."""

import csv
import json
from io import StringIO

import numpy as np
import pytest
from support.comparing import add, arm_of, built, difference_of, xrays
from support.folds import FOLDS, add_fold
from support.memory_store import MemoryStore

from premed.cli.options import as_json_value
from premed.reporting.comparison import terminal
from premed.reporting.comparison.compare import compare, task_runs
from premed.reporting.comparison.paper import table_csv, table_tex
from premed.reporting.comparison.selection import finished_experiments
from premed.reporting.sample_size.arms import prices
from premed.reporting.sample_size.plan import from_store
from premed.reporting.sample_size.settings import PlanSettings


def test_its_cost_is_that_of_all_folds(folded):
    cost = arm_of(compare(folded)).cost
    assert (cost.pretrain.runs, cost.finetune.runs) == (9, 9)
    assert cost.pretrain.device_hours == pytest.approx(9 * 2)
    (block,) = task_runs(folded, finished_experiments(folded, None)[0], None, (), None).blocks
    (arm,) = [arm for arm in block.arms if arm.label == "mae"]
    assert prices(arm, "test").pretraining == pytest.approx(3 * 2)  # of one more seed


def test_a_pre_training_that_serves_all_folds_is_priced_once(store):
    """One on another data set does not depend on the fold."""
    for seed in range(3):
        add_fold(store, "mae", seed, 0, xrays(2, seed), pretrain_seed=seed)
        (shared, *_) = (run.run_id for run in store.search({"premed.kind": "pretrain"}))
        for fold in range(1, FOLDS):
            add_fold(store, "mae", seed, fold, xrays(2, 10 * seed + fold), shared=shared)
    (block,) = task_runs(store, finished_experiments(store, None)[0], None, (), None).blocks
    (arm,) = block.arms
    assert prices(arm, "test").pretraining == pytest.approx(2) and arm_of(compare(store)).cost.pretrain.runs == 3


def test_the_page_links_the_runs_of_all_folds_and_says_how_it_was_scored(folded):
    page = built(folded, ui="http://127.0.0.1:5000")
    text = " ".join(page.words.split())
    for run in folded.search({"premed.kind": "test"}):
        assert any(run.run_id in link for link in page.links)
    assert "90 cases of 30 patients, in 3 folds, each by networks without its patients" in text
    assert "90 test images of 30 patients in 3 folds by patient (cross-validation)" in text
    assert "3 pre-trainings with 3 fine-tunings of mae and 3 trainings of none in each fold" in text
    assert "no interval covers other training images" in text and "taken within each fold" in text


def test_terminal_csv_and_json_have_the_same_numbers(folded, tmp_path, capsys):
    result = compare(folded)
    terminal.show(result)
    assert "90 cases of 30 patients in 3 folds" in " ".join(capsys.readouterr().out.split())
    terminal.write_csv(result, tmp_path / "all.csv")
    (line,) = [
        each for each in csv.DictReader((tmp_path / "all.csv").open()) if each["label"] == "mae" and not each["class"]
    ]
    (*_, of_paper) = csv.DictReader(StringIO(table_csv(result)))
    assert (of_paper["images"], of_paper["patients"], of_paper["folds"]) == ("90", "30", "3")
    assert "test part: 90 images of 30 patients in 3 folds" in table_tex(result)
    written = json.loads(json.dumps(as_json_value(result)))["tasks"][0]
    (row,) = [each for each in written["blocks"][0]["rows"] if each["label"] == "mae"]
    assert float(line["difference"]) == row["scores"]["mauc"]["difference"]["value"] == difference_of(result).value
    assert [len(run["folds"]) for run in row["runs"]] == [3, 3, 3] and written["num_folds"] == 3


def test_a_plan_that_asks_for_more_test_patients_names_the_folds_unless_there_are_some(folded, tmp_path):
    one = MemoryStore(tmp_path / "one")
    for seed in range(4):
        more = {"change": {"task": {"name": "images", "folds": "None", "fold": "None"}}}
        add(one, "none", seed, xrays(1, seed), **more)
        add(one, "mae", seed, xrays(1.05, seed + 9), pretrain_seed=seed, **more)
    notes = [block.notes for each in (one, folded) for block in from_store(each, PlanSettings(margin=0.01)).blocks]
    assert [any("folds test each labelled patient once" in note for note in some) for some in notes] == [True, False]


def test_what_more_test_patients_of_a_cross_validation_cost_is_not_given(folded):
    """They change the folds, so that all is trained anew: the hours of testing alone would be far too few."""
    plan = from_store(folded, PlanSettings(margin=0.08)).blocks[0]
    needs = {need.what: need for need in plan.comparisons[0].needs}
    assert needs["test patients"].needed > 30 and needs["test patients"].note == "labelled, all folds anew"
    assert np.isnan(needs["test patients"].hours)
    assert needs["pre-trainings, a fine-tuning each"].hours > 0 and "test patients, begun anew" in plan.conclusion
