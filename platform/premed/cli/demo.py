"""`premed demo`: does MAE help on phantoms of chest X-rays, abdominal CT and brain MRI? On Ray, a worker for each core.

What was tried on the way to these recipes, and what they measure: docs/first-look.md, "The demo".
"""

import os
import shlex
import shutil
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

from premed.cli.browser import has_desktop
from premed.cli.progress import ProgressPrinter
from premed.config.compose import merge, validate_experiment
from premed.config.experiment import Experiment
from premed.data.phantoms import abdomen, brain
from premed.data.phantoms.drawing import draw_missing
from premed.data.phantoms.writers import write_chestxray14

ENCODER = {"name": "vit", "width": 96, "depth": 4, "heads": 3, "patch": 8}
MAE = {"name": "mae", "mask_ratio": 0.75, "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 3}
# An experiment has one worker, so that two cores train two at once: workers that share networks so small wait for each
# other at each step. In bf16 they are slower, too.
TRAIN = {"workers": 1, "log_steps": 50, "precision": "fp32"}

CHEST = {
    "task": {"name": "chestxray14", "size": 48, "stored": 48},
    "encoder": ENCODER,
    "pretrain": {
        "steps": 2600,
        "warmup_epochs": 0.05,
        "batch": 32,
        "lr": 1.6e-2,
        "clip": 1.0,
        "validations": 3,
        "augment": {"scale": (0.8, 1.0)},
    },
    "finetune": {
        "head": {"name": "linear", "pool": "cls"},
        "steps": 300,
        "warmup_epochs": 0.1,
        "batch": 32,
        "lr": 8e-3,
        "clip": 1.0,
        "layer_decay": 0.8,
        "label_fraction": 0.25,
        "validations": 1,
        "augment": {"scale": (0.8, 1.0), "flip": 0.5},
    },
    "train": TRAIN,
}
VOLUMES = {
    "encoder": ENCODER,
    "pretrain": {
        "steps": 400,
        "warmup_epochs": 0.05,
        "batch": 16,
        "lr": 3.2e-2,
        "clip": 1.0,
        "validations": 3,
        "augment": {"shift": 0},  # shifted crops blur positions, so that the gate is passed much later
    },
    "finetune": {  # logistic regression on frozen features
        "head": {"name": "probe", "strengths": (1e-3, 1e-1), "priors": (0.5, 1.0)},
        "epochs": 1,
        "batch": 2,
        "lr": 1e-3,
        "label_fraction": 0.5,
    },
    "train": TRAIN,
}
# test_images: pre-trains on volumes without labels, too; fewer than a hundred would soon be overfitted
CT = merge(
    VOLUMES,
    {
        "task": {
            "name": "btcv",
            "roi": (32, 24, 24),
            "spacing": (10.0, 10.0, 10.0),
            "val_share": 0.2,
            "overlap": 0.25,
            "test_images": True,
        },
    },
)
MRI = merge(
    VOLUMES,
    {
        "task": {
            "name": "brats",
            "roi": (32, 32, 24),
            "spacing": (5.0, 5.0, 5.0),
            "val_share": 0.2,
            "overlap": 0.25,
            "test_images": True,
        },
        "pretrain": {"augment": {"flip": 0.5, "flip_axes": (0,)}},
    },
)
TREES = (CHEST, CT, MRI)
WRITERS = {
    "chestxray14": partial(write_chestxray14, num_patients=500, seed=0, size=64, prevalence=0.3),
    "btcv": partial(abdomen.write_btcv, num_cases=30, num_unlabelled=70, seed=0, shape=(44, 36, 32)),
    "Task01_BrainTumour": partial(brain.write_brats, num_cases=60, num_unlabelled=60, seed=0, shape=(40, 40, 32)),
}
EXPECT = (
    "each task is pre-trained for a few minutes; on volumes that is too short to pass the gate, and what it "
    "gains all the same, or not, is said at the end"
)
SEEDS = {"chestxray14": range(6), "btcv": range(3), "brats": range(3)}


def run(folder: Path) -> dict[str, Any]:
    """Draws the phantoms, runs the experiments, compares them and writes the page; what is finished is not done again.

    Returns `outcomes`, `verdicts` (sentences, one per task), `report` (the page's path; None if an experiment failed,
    then there is no verdict either) and `next` (commands).
    """
    os.environ.setdefault("PREMED_HOME", str(folder / "home"))
    os.environ["PREMED_DATA"] = str(folder / "data")
    with ProgressPrinter() as printer:
        printer.print_line(f"phantoms, runs and report: {folder}")
        printer.print_line(EXPECT)
        draw_missing(folder / "data", WRITERS, lambda name, *done: printer.progress(f"drawing {name}", *done))
        outcomes = run_experiments(printer)
    for outcome in outcomes:
        copy_pictures(outcome, folder / "pictures")
    report = folder / "report.html"
    whole = not any("failure" in outcome for outcome in outcomes)
    return {
        "outcomes": outcomes,
        "verdicts": compared(outcomes, report) if whole else [],
        "report": str(report) if whole else None,
        "next": next_commands(),
    }


def run_experiments(printer: ProgressPrinter) -> list[dict[str, Any]]:
    from premed.execution import runner

    return runner.run_all(experiments(), printer, register=False)


def experiments() -> list[Experiment]:
    """`none` and `mae` on each data set, with several seeds; everything but the strategy is the same."""
    return [
        validate_experiment(
            merge(tree, {"pretext": strategy, "finetune": {"seed": seed}})
            | {"pretrain": tree["pretrain"] if strategy["name"] == "mae" else None}
        )
        for tree in TREES
        for seed in SEEDS[tree["task"]["name"]]
        for strategy in ({"name": "none"}, MAE)
    ]


def compared(outcomes: list[dict[str, Any]], report: Path) -> list[str]:
    """Writes the comparison of the demo's runs, not of others in the same home, as a page; returns it in sentences.

    One for each task, in the order of TREES.
    """
    from premed.reporting.comparison import compare, page
    from premed.reporting.comparison.sentences import sentences
    from premed.tracking.run_store import open_store

    store = open_store()
    result = compare.compare(store, run_ids={outcome["run_id"] for outcome in outcomes})
    page.write(result, store, report, None)
    tasks = [tree["task"]["name"] for tree in TREES]
    return sorted(sentences(result, pretrainings(outcomes)), key=lambda line: tasks.index(line.partition(":")[0]))


def pretrainings(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """The pre-training of each task, as its verdict needs it."""
    from premed.reporting.comparison.sentences import Pretraining

    found = {}
    for outcome in outcomes:
        for stage in outcome["stages"]:
            if stage["kind"] == "pretrain":
                gate = stage.get("gate") or {"loss": None, "gate": None, "passed": False}
                about = {name: gate[name] for name in ("loss", "gate", "passed")}
                found[outcome["task"]] = Pretraining(stage["num_cases"], **about)
    return found


def next_commands() -> list[str]:
    """What can be done with the demo's runs, to be copied into this shell."""
    premed = f"PREMED_HOME={shlex.quote(os.path.relpath(os.environ['PREMED_HOME']))} {program()}"
    return [f"{premed} compare", f"{premed} ui", f"{program()} init FOLDER_WITH_YOUR_IMAGES"]


def program() -> str:
    """How this shell starts premed: it may be in an environment that is not activated."""
    started = Path(sys.argv[0])
    if started.name != "premed":
        return f"{shlex.quote(sys.executable)} -m premed"
    if (found := shutil.which("premed")) and Path(found).resolve() == started.resolve():
        return "premed"
    return shlex.quote(os.path.relpath(started))


def open_page(path: str | None) -> None:
    """Opens a page in the browser, if there is one, where somebody sits before a desktop."""
    if path and has_desktop():
        webbrowser.open(Path(path).as_uri())


def show(result: dict[str, Any]) -> None:
    """Prints the verdicts, the commands to go on with and, last, the page."""
    if result["report"] is None:
        print("\nNo verdict: an experiment failed; the same command goes on from what is finished")
        return
    print("\nDoes pre-training help on these images? Intervals are of 95 %, over patients and seeds.\n")
    for line in result["verdicts"]:
        print(line)
    print("\nWhat to do next:")
    for line in result["next"]:
        print(f"  {line}")
    print(f"\nreport: {os.path.relpath(result['report'])}")


def copy_pictures(outcome: dict[str, Any], folder: Path) -> None:
    """Copies the pictures of an experiment's stages; their names say of which task, strategy, seed and stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in outcome["stages"]:
        seed = f"-seed{outcome['seed']}" if stage["kind"] in ("finetune", "test") else ""
        for picture in sorted(Path(stage["where"]).glob("pictures/*.png")):
            name = f"{outcome['task']}-{outcome['strategy']}{seed}-{stage['kind']}-{picture.name}"
            shutil.copy(picture, folder / name)
