"""`premed plan` on the command line: tables, one JSON object, a picture, and one line for what cannot be."""

import json

import pytest

pytest_plugins = ["support.experiment_fixtures"]
GUESSES = ("--n-patients", "40", "--sd-patients", "0.05", "--sd-finetuning", "0.01", "--margin", "0.05")


def test_guesses_are_planned_without_a_store(premed, tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "absent"))
    code, out, err = premed("plan", *GUESSES, "--picture", tmp_path / "plan.svg")
    assert code == 0 and "From guesses" in out and "What would show a difference of 0.05" in out
    assert "difference [95 % interval]" not in out and " labels " not in out, "columns that tell nothing of guesses"
    assert err == [f"written: {tmp_path / 'plan.svg'}"] and (tmp_path / "plan.svg").read_bytes().startswith(b"<?xml")
    code, out, _ = premed("plan", *GUESSES, "--n-seeds", "5", "--json")
    (block,) = json.loads(out)["blocks"]
    assert code == 0 and block["comparisons"][0]["now"] == {"pretrainings": 5, "finetunings": 1, "patients": 40}
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--part", "train"], "--part train: write --part test or --part val"),
        (["--sd-patients", "0.1"], "--sd-patients: is of a plan from guesses; state --n-patients too, or leave it out"),
        (["--n-seeds", "4"], "--n-seeds: is of a plan from guesses"),
        ([*GUESSES, "--task", "btcv"], "--n-patients: plans from guesses alone, and --task chooses runs"),
        ([*GUESSES, "--power", "2"], "--power 2: write a share between 0.05 and 1"),
        ([*GUESSES, "--picture", "plan.pdf"], "--picture plan.pdf: write a name that ends in .svg or .png"),
        (["--margin", "much"], "--margin"),
        ([], "does not exist yet: run an experiment first"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(premed, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "absent"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, err = premed("plan", *arguments)
    assert code == 2 and out == "" and len(err) == 1 and err[0].startswith("premed: ") and words in err[0]
