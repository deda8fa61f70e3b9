"""What an earlier premed left goes on working: its MLflow store is read and reused, its unfinished stages are finished.

`compatibility/` was written by the code of commit 5559275. It is there to be read, not to be kept up to date: write it
anew only where a version was raised on purpose, so that a finished stage of the old one is no longer reused.
python tests/golden/test_compatibility.py --write
"""

import csv
import hashlib
import json
import shutil
import sqlite3
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load

if __name__ == "__main__":  # pytest has it on its path by the conftest there
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.experiments import SCRATCH, TINY, settle_in
from support.stores import moved
from support.suite import locked
from support.weights import learnt

from premed.config.compose import merge
from premed.data.phantoms.writers import write_chestxray14

pytest_plugins = ["support.experiment_fixtures"]

KEPT = Path(__file__).parent / "compatibility"
HOME = "/home-of-the-store"  # in place of the folder that it was written in, which MLflow's database is full of
NOBODY = {"mlflow.user": "somebody", "premed.host": "somewhere", "premed.pid": "1"}
SMALL = {
    "encoder": {"width": 8, "depth": 1},
    "pretext": {"decoder_width": 8},
    "pretrain": {"lr": 0.1},
    "finetune": {"lr": 0.1, "head": {"name": "linear", "pool": "mean"}},
}
STRATEGIES = {"none": (SMALL, SCRATCH), "mae": (SMALL,)}
LEFT_OUT = ("/models/", "probabilities.png")  # exported graphs, which hold paths of source files; what is large
UNFINISHED = {
    "pretrain": ("mae", 6),
    "finetune": ("none", 6),
}  # by kind of stage: its strategy, and when it was stopped


def phantoms(folder):
    """The X-rays that all of it is about."""
    return write_chestxray14(folder / "chestxray14", 30, 0, size=32)


def written(strategy, folder, **more):
    """A YAML of the experiment, which finds its data in PREMED_DATA; `more`: fields of the top."""
    tree = TINY
    for change in STRATEGIES[strategy]:
        tree = merge(tree, change)
    if strategy == "none":
        tree = {name: part for name, part in tree.items() if name != "pretrain"}
    (folder / f"{strategy}.yaml").write_text(yaml.safe_dump(tree | more))
    return folder / f"{strategy}.yaml"


def parts(folder):
    """The bytes of a finished stage's weights, by file."""
    return {path.name: path.read_bytes() for path in sorted((folder / "parts").glob("*.safetensors"))}


def digest(weights):
    return {name: hashlib.sha256(content).hexdigest() for name, content in weights.items()}


def rounding():
    """A hash of how torch rounds what a small network needs: processors differ in it, and training amplifies it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(12, 48), torch.nn.GELU(), torch.nn.Linear(48, 12), torch.nn.LayerNorm(12)]
        network, image = torch.nn.Sequential(torch.nn.Conv2d(1, 12, 8, stride=8)), torch.randn(16, 1, 16, 16)
        tokens = network(image).flatten(2).transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        out = torch.nn.Sequential(*layers)(mixed)
        (out.softmax(-1) * out).mean().backward()
        numbers = [out.detach(), *(p.grad for p in network.parameters()), *(p.grad for p in layers[0].parameters())]
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in numbers)).hexdigest()


def made_by_intel():
    """MKL takes other kernels on others' processors, also for shapes on which `rounding` sees no difference."""
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text()


# ---- reading it


def expected():
    return json.loads((KEPT / "expected.json").read_text())


def unpacked(name, folder):
    with zipfile.ZipFile(KEPT / name) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return phantoms(tmp_path_factory.mktemp("data")).parent


@pytest.fixture
def kept(data, tmp_path, monkeypatch):
    """The store, in use: all that there is of its home, for its checkpoints were cleaned away."""
    home = unpacked("store.zip", tmp_path / "home")
    moved(home / "mlflow.db", HOME, str(home))
    settle_in(monkeypatch, home)
    monkeypatch.setenv("PREMED_DATA", str(data))
    return home


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_command_trains_nothing_again(kept, premed, tmp_path, strategy):
    code, out, err = premed("run", written(strategy, tmp_path), "--json")
    assert code == 0, err
    result = json.loads(out)
    assert all(stage["reused"] for stage in result["stages"])
    assert ours(result) == expected()["outcomes"][strategy]


def ours(outcome):
    """What of an outcome must stay."""
    stages = [{name: stage[name] for name in ("kind", "digest", "run_id", "summary")} for stage in outcome["stages"]]
    return {"run_id": outcome["run_id"], "stages": stages, "value": outcome["stages"][-1]["value"]}


def test_compare_tells_the_same_of_it(kept, premed):
    code, out, err = premed("compare", "--json", "--baseline", "none")
    assert code == 0, err
    assert compared(json.loads(out)) == expected()["compared"]


def compared(result):
    """The rows' scores with their runs."""
    (task,) = result["tasks"]
    (block,) = task["blocks"]
    return {row["strategy"]: [[run["run_id"], round(run["value"], 9)] for run in row["runs"]] for row in block["rows"]}


def test_its_networks_answer_as_they_did(kept, data, premed, tmp_path):
    images = sorted((data / "chestxray14" / "images").iterdir())[:3]
    best = expected()["best"]
    for number, name in enumerate(("models:/chestxray14@best", best)):
        code, _, err = premed("predict", name, *images, "--out", tmp_path / f"{number}", "--precision", "fp32")
        assert code == 0, err
        rows = answers(tmp_path / f"{number}" / "predictions.csv")
        assert rows == {image: pytest.approx(row, abs=1e-5) for image, row in expected()["answers"].items()}


def answers(file):
    with file.open(newline="") as lines:
        return {Path(row.pop("path")).name: [float(value) for value in row.values()] for row in csv.DictReader(lines)}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_an_unfinished_stage_ends_as_if_it_had_never_been_stopped(data, home, premed, tmp_path, monkeypatch, kind):
    if torch.__version__.partition("+")[0] != (version := locked("torch")):
        pytest.skip(f"these weights are torch {version}'s: another rounds otherwise, which training amplifies")
    monkeypatch.setenv("PREMED_DATA", str(data))
    unpacked("unfinished.zip", home)
    (stage,) = (home / "checkpoints").glob(f"{kind}-*")
    strategy, step = UNFINISHED[kind]
    code, _, err = premed("run", written(strategy, tmp_path, test=False))
    assert code == 0 and any(f"resumed after step {step}" in line for line in err), err
    run_id = stage_of(expected()["outcomes"][strategy], kind)["run_id"]
    (where,) = (unpacked("store.zip", tmp_path / "then") / "artifacts").glob(f"*/{run_id}/artifacts")
    then, now = parts(where), parts(stage)
    assert digest(then) == expected()["weights"][kind] and then.keys() == now.keys()
    for name in then:
        for key, weights in load(then[name]).items():
            np.testing.assert_allclose(learnt(key, load(now[name])[key]), learnt(key, weights), rtol=1e-3, atol=1e-5)
    if rounding() == expected()["rounding"] and made_by_intel():
        assert digest(now) == digest(then)


# ---- writing it


def write():
    from premed.config.compose import load as experiment
    from premed.config.settings import Train
    from premed.execution import runner
    from premed.inference.predict import run as predict

    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder, result = Path(name).resolve(), {}
        data = phantoms(folder / "data").parent
        patch.setenv("PREMED_DATA", str(data))
        settle_in(patch, folder / "home")
        (folder / "answers").mkdir()
        outcomes = {each: runner.run(experiment([written(each, folder)]), print) for each in STRATEGIES}
        result["outcomes"] = {each: ours(outcome) for each, outcome in outcomes.items()}
        result["compared"] = compare_now()
        values = {each: outcome["stages"][-2]["summary"]["val/mauc"] for each, outcome in outcomes.items()}
        result["best"] = outcomes[max(values, key=values.__getitem__)]["stages"][-2]["run_id"]
        images = sorted((data / "chestxray14" / "images").iterdir())[:3]
        predict("models:/chestxray14@best", images, folder / "answers" / "out", print, train=Train(precision="fp32"))
        result["answers"] = answers(folder / "answers" / "out" / "predictions.csv")
        finished = {
            kind: Path(stage_of(outcomes[strategy], kind)["where"]) for kind, (strategy, _) in UNFINISHED.items()
        }
        result["weights"] = {kind: digest(parts(where)) for kind, where in finished.items()}
        result["rounding"] = rounding()
        shutil.rmtree(KEPT, ignore_errors=True)
        KEPT.mkdir()
        moved(folder / "home" / "mlflow.db", str(folder / "home"), HOME)
        anonymous(folder / "home" / "mlflow.db")
        with zipped("store.zip") as file:
            for path in [folder / "home" / "mlflow.db", *sorted((folder / "home" / "artifacts").rglob("*"))]:
                if not any(part in str(path) for part in LEFT_OUT):
                    add(file, path, path.relative_to(folder / "home"))
        with zipped("unfinished.zip") as file:
            for kind, (strategy, step) in UNFINISHED.items():
                settle_in(patch, home := folder / f"home {kind}")
                with pytest.raises(KeyboardInterrupt):
                    runner.run(experiment([written(strategy, folder, test=False)]), stopping(kind, step))
                (stage,) = (home / "checkpoints").glob(f"{kind}-*")
                for path in sorted(stage.rglob("*")):
                    if (
                        path.suffix not in (".pt", ".json") or path.stem == f"{step:09d}"
                    ):  # of two checkpoints the newer
                        add(file, path, path.relative_to(home))
        (KEPT / "expected.json").write_text(json.dumps(result, indent=1) + "\n")


def compare_now():
    from premed.paths import home
    from premed.reporting.comparison.compare import compare
    from premed.tracking import run_store

    return compared(compare(run_store.RunStore(f"sqlite:///{home()}/mlflow.db"), baseline="none"))


def stage_of(outcome, kind):
    return next(stage for stage in outcome["stages"] if stage["kind"] == kind)


def stopping(kind, step):
    def show(event):
        if (event["event"], event.get("kind"), event.get("step")) == ("saved", kind, step):
            raise KeyboardInterrupt

    return show


def anonymous(database):
    """Takes out who wrote it, and where."""
    connection = sqlite3.connect(database)
    with connection:
        for name, value in NOBODY.items():
            connection.execute("UPDATE tags SET value = ? WHERE key = ?", (value, name))
        connection.execute("UPDATE runs SET user_id = ?", (NOBODY["mlflow.user"],))
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", (HOME,))
    connection.execute("VACUUM")
    connection.close()


def zipped(name):
    return zipfile.ZipFile(KEPT / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9)


def add(file, path, name):
    if path.is_file():
        file.writestr(zipfile.ZipInfo(str(name), (2026, 11, 28, 0, 0, 0)), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/golden/test_compatibility.py --write")
    torch.set_num_threads(1)
    write()
