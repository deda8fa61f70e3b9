"""`seeds: auto` in a sweep: which trials get no more seeds."""

import numpy as np
import pytest
import scipy.stats
import yaml
from support.sweep_seeds import simulated
from support.sweeps import write_chest_base

from premed.events import LookTaken
from premed.execution.session import Session
from premed.reporting.sequential import levels
from premed.tuning.context import SweepContext
from premed.tuning.seeds import find_behind, lead
from premed.tuning.sweep_file import load_sweep
from premed.tuning.trial import Trial

LOOKS = (4, 6, 8)
GOOD, BAD = [0.80, 0.82, 0.79, 0.81, 0.80, 0.80, 0.80, 0.80], [0.70, 0.71, 0.70, 0.70]


def by_seed(values):
    return {str(seed): [value] for seed, value in enumerate(values)}


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("look", [0, 1, 2])
def test_a_lead_is_the_mean_of_paired_differences_with_student_s_interval_at_the_look_s_level(mode, look):
    rng = np.random.default_rng(look)
    best, ours = rng.normal(size=8), rng.normal(size=LOOKS[look])
    found = lead(by_seed(ours), by_seed(best), LOOKS, mode)
    sign = 1 if mode == "max" else -1
    differences = sign * (ours - best[: len(ours)])
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(1 - levels(LOOKS)[look])
    assert found.num_seeds == len(ours) and found.difference == pytest.approx(differences.mean())
    assert found.interval == pytest.approx((expected.low, expected.high))


@pytest.fixture
def context(tmp_path, monkeypatch):
    """Makes the context of a sweep with `seeds: auto` and these fields of `decide`."""
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "premed"))
    write_chest_base(tmp_path)

    def context(**decide):
        tree = {"base": "base.yaml", "space": {"finetune.lr": [0.1, 0.2, 0.3]}, "seeds": "auto"}
        tree["decide"] = {"max_seeds": 8, "looks": list(LOOKS)} | decide
        (tmp_path / "lr.yaml").write_text(yaml.safe_dump(tree))
        return SweepContext(load_sweep(tmp_path / "lr.yaml"))

    return context


def test_a_trial_behind_the_best_gets_no_more_seeds_and_stays_stopped_when_the_sweep_resumes(context):
    of_sweep, shown = context(), []
    study = of_sweep.study()
    study.start("data")
    assert find_behind(of_sweep, study, shown.append, study.ask().number, by_seed(BAD)) == ""  # none is done yet
    study.tell(0, "done", [float(np.mean(GOOD))], {"by_seed": by_seed(GOOD)})
    number = study.ask().number
    words = find_behind(of_sweep, study, shown.append, number, by_seed(BAD))
    assert words.startswith("no better than trial 0: val/mauc -0.103 [") and words.endswith("after 4 seeds")
    assert shown == [LookTaken(f"trial {number} gets no more seeds, {words}")]
    assert find_behind(of_sweep, study, shown.append, number, by_seed([0.80, 0.81, 0.80, 0.80])) == ""
    study.tell(number, "stopped", None, {"by_seed": by_seed(BAD), "behind": words})

    again = of_sweep.study()
    again.start("data")
    assert [trial.state for trial in again.trials()] == ["done", "stopped", "waiting"]
    result = of_sweep.result(again)
    assert result.trials[1].behind == words and result.best == 0 and result.seeds == list(range(8))


def test_a_trial_that_may_be_better_but_by_less_than_the_margin_gets_no_more_seeds(context):
    close = by_seed([0.801, 0.822, 0.791, 0.812])
    for margin, is_behind in ((None, False), (0.01, True)):
        of_sweep = context(**({} if margin is None else {"margin": margin}))
        study = of_sweep.study()
        study.start("data")
        study.ask()
        study.tell(0, "done", [float(np.mean(GOOD))], {"by_seed": by_seed(GOOD)})
        assert bool(find_behind(of_sweep, study, lambda event: None, 1, close)) == is_behind


class TrialOfValues(Trial):
    """Its seeds have these values in place of trainings."""

    values = GOOD

    def run_seed(self, index, experiment):
        return {"stages": [{"summary": {"val/mauc": self.values[index]}}]}


@pytest.mark.parametrize(("behind_at", "num_seeds"), [(4, 4), (6, 6), (8, 8), (None, 8)])
def test_a_trial_is_looked_at_after_so_many_seeds_and_with_the_last_it_has_its_mean(behind_at, num_seeds):
    looked = []

    def find(values):
        looked.append(len(values))
        return "behind" if len(values) == behind_at else ""

    session = Session(None, None, map, lambda event: None)
    fields = {"looks": LOOKS, "find_behind": find}
    trial = TrialOfValues(0, range(8), lambda: [None] * 8, session, ["val/mauc"], lambda event: None, None, **fields)
    values = trial.run(retries=0)
    assert list(trial.by_seed) == [str(seed) for seed in range(num_seeds)]
    assert looked == [look for look in LOOKS[:-1] if look <= num_seeds]
    if num_seeds < 8:
        assert values is None and trial.notes["behind"] == "behind"
    else:
        assert values == [pytest.approx(np.mean(GOOD))] and "behind" not in trial.notes


def test_the_best_of_a_grid_is_rarely_stopped_and_the_choice_is_as_good_as_with_all_seeds():
    found = simulated(spread=2.0, margin=0.0, num=60)
    assert found.share < 0.75 and not found.best_stopped
    assert found.regret == pytest.approx(found.regret_of_all, abs=0.01)
