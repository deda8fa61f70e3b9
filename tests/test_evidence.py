"""docs/evidence.md: its commands are valid and make all arms of its tables, on the real images too."""

import json
import re
import shlex
import subprocess
from collections import Counter

import pytest
from support.commands import shell
from support.suite import REPOSITORY

from premed.config.expand import load_all

PAGE = (REPOSITORY / "docs" / "evidence.md").read_text()
BLOCKS = [block for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL) if "premed run" in block]
FOLDS = next(block for block in BLOCKS if "task.folds=3" in block)
SHORT = (
    "train.workers=0 pretrain.steps=2 pretrain.validations=1 finetune.steps=2 finetune.validations=1 "
    "finetune.label_fraction=0.25 task.fold=[0,1] seeds=[0,1]"
)


def commands(block):
    """The arguments of each `premed …` of a block, as its shell hands them over."""
    script = "set -eu; premed() { printf '%s\\0' \"$@\" $'\\n'; }\n" + block
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    return [line.strip("\0").split("\0") for line in done.stdout.split("\0\n\0") if line]


def experiments(arguments):
    files = [REPOSITORY / word for word in arguments if word.endswith(".yaml")]
    return load_all(files, [word for word in arguments if not word.endswith(".yaml")])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: " ".join(block.split()[:2]))
def test_each_command_is_valid_and_none_is_twice(block, monkeypatch):
    monkeypatch.delenv("PREMED_DATA", raising=False)
    runs = [words for name, *words in commands(block) if name == "run"]
    made = [json.dumps(each.model_dump(mode="json")) for words in runs for each in experiments(words)]
    assert made and len(set(made)) == len(made)
    assert {name for name, *_ in commands(block)} <= {"run", "compare", "plan"}


def test_each_arm_of_the_folds_has_as_many_trainings_in_each():
    made = [each for name, *words in commands(FOLDS) if name == "run" for each in experiments(words)]
    arms = {"mae vit linear", "mae vit probe", "none vit linear", "none vit probe", "none pixels probe"}
    assert {arm_of(each) for each in made} == arms
    of = Counter((arm_of(each), each.finetune.label_fraction, each.task.fold) for each in made)
    for arm, share, _ in of:
        assert (
            of[arm, share, 0] == of[arm, share, 1] == of[arm, share, 2] == of[f"none vit {arm.split()[-1]}", share, 0]
        )
    assert len({(each.pretrain.seed, each.task.fold) for each in made if each.strategy == "mae"}) == 9


def arm_of(experiment):
    return f"{experiment.strategy} {experiment.encoder.name} {experiment.finetune.head.name}"


@pytest.mark.slow
def test_a_short_form_of_the_folds_makes_the_table_and_goes_on_where_it_was(real, tmp_path):
    home = {"PREMED_HOME": str(tmp_path / "home"), "PREMED_DATA": str(real("brainmri").parent)}
    short: dict[str, str] = {}  # of each arm, and each comparison, the first command
    for name, *words in commands(FOLDS):
        kept = [word for word in words if not word.startswith("seeds=")]
        line = f"cd {shlex.quote(str(REPOSITORY))}; premed {name} {shlex.join(kept)} "
        files = " ".join(word for word in words if word.endswith(".yaml"))
        short.setdefault(files or line, line + (SHORT if name == "run" else f"--figures {shlex.quote(str(tmp_path))}"))
    probes = [files for files in short if "probe.yaml" in files]
    for line in (line for files, line in short.items() if files not in probes[1:]):
        code, out, err = shell(line, **home)
        assert code == 0, err
    assert "in 2 folds" in out and all(arm in out for arm in ("none vit linear", "mae vit probe", "none pixels"))
    assert (tmp_path / "table.csv").is_file()
    code, out, err = shell(next(iter(short.values())), **home)
    assert code == 0 and "fine-tuning: 2/2" not in out + err
