"""CONTRIBUTING.md, README.md and docs/ name what is there, and the four plug-ins in CONTRIBUTING.md train."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from support.suite import REPOSITORY

from premed.data.phantoms.writers import write_chestxray14

pytest_plugins = ["support.experiment_fixtures"]

PACKAGE = REPOSITORY / "platform" / "premed"
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
PAGES = [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ELSEWHERE = {"platform/premed/tasks/spleen.py", "experiments/spleen/none.yaml", "docs/README.md"}
"""To be written by the reader, or in the bundle that `premed export` writes."""


def section(title: str) -> str:
    """The text below a heading of CONTRIBUTING.md, up to the next."""
    return re.split(r"^## ", CONTRIBUTING.split(f"\n## {title}", 1)[1], maxsplit=1, flags=re.M)[0]


# ---- the tree


def in_tree() -> set[str]:
    """The files that the tree names. A package's stand on the indented lines below it, what they are in parentheses."""
    files, package = set(), ""
    for line in section("The tree").split("```")[1].splitlines():
        first, _, rest = line.partition(" ")
        if first.endswith("/"):
            package = first
        elif first.endswith(".py"):
            files.add(first)
        elif line.strip():
            files |= {f"{package}{name}.py" for name in re.sub(r"\(.*?\)", "", rest).split()}
    return files


def test_the_tree_names_every_file_and_no_other():
    there = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert in_tree() == there


def test_the_readme_s_tree_names_every_package_and_every_file_at_the_root():
    block = next(each for each in (REPOSITORY / "README.md").read_text().split("```") if "\nexecution/" in each)
    named = {line.split()[0] for line in block.splitlines() if line.strip() and not line.startswith(" ")}
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert named == packages | {path.name for path in PACKAGE.glob("[!_]*.py")}


def test_the_floors_are_import_linter_s():
    listed = re.findall(r"^\d\. (.+)$", section("The tree"), re.M)
    contract = (REPOSITORY / "pyproject.toml").read_text().split('containers = ["premed"]')[1].split("layers = [")[1]
    layers = re.findall(r'"(.+?)"', contract.split("\n]")[0])
    assert [set(re.findall(r"`(\w+)`", floor)) for floor in listed] == [set(layer.split(" | ")) for layer in layers[1:]]


# ---- what is named is there


def defined(path) -> set[str]:
    """Functions and classes of a file, and the classes' methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


REFERENCES = re.findall(r"`([\w/]+\.py): ([\w., ]+)`", CONTRIBUTING)


def test_the_ways_name_functions_that_are_there():
    assert len(REFERENCES) > 30
    missing = [
        f"{file}: {name}"
        for file, names in REFERENCES
        for name in names.split(", ")
        if name not in defined(PACKAGE / file)
    ]
    assert missing == []


def paths_in(text: str) -> set[str]:
    """Paths in backticks that begin at the repository's root, patterns of several files among them."""
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    words = {word.partition(":")[0] for span in spans for word in span.split()}
    return {word for word in words if re.match(r"(platform|tests|experiments|docs|cluster)/", word) and "<" not in word}


def there_is(path: str) -> bool:
    """Whether the repository has a file or folder by that name or pattern; {a,b} is either."""
    if choice := re.search(r"\{([^}]+)\}", path):
        return all(there_is(path.replace(choice[0], each)) for each in choice[1].split(","))
    return any(REPOSITORY.glob(path.rstrip("/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_path_that_a_page_names_is_there(page):
    assert sorted(path for path in paths_in(page.read_text()) - ELSEWHERE if not there_is(path)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_python_file_that_contributing_names_is_there():
    words = set(re.findall(r"`([\w/]+\.py)\b", CONTRIBUTING)) - ELSEWHERE
    bare = {word for word in words if not (REPOSITORY / word).exists() and not (PACKAGE / word).exists()}
    assert bare - {"__init__.py"} == set()


# ---- the four examples

PLUGINS = {"tasks/spleen": "A data set", "models/encoders/stem": "An encoder", "pretext/brightness": "A strategy"} | {
    "models/heads/mlp": "A head"
}
TRAINING = {"epochs": 1, "steps": 4, "batch": 4, "lr": 1e-3, "validations": 2}
XRAYS = {
    "task": {"name": "chestxray14", "size": 32, "stored": 32},
    "encoder": {"name": "stem", "width": 16},
    "pretext": {"name": "brightness"},
    "pretrain": TRAINING,
    "finetune": TRAINING | {"head": {"name": "mlp"}},
    "train": {"workers": 0, "log_steps": 1, "precision": "fp32"},
}
SPLEENS = XRAYS | {
    "task": {"name": "spleen", "roi": [16, 16, 16]},
    "encoder": {"name": "vit", "width": 24, "depth": 4, "heads": 2, "patch": 8},
    "finetune": TRAINING | {"head": {"name": "unetr", "feature_size": 4}},
}
RUN = """
import json, sys
import pytest
from support.experiments import bare
from premed.config.compose import validate_experiment
from premed.execution import runner
bare(pytest.MonkeyPatch())
print(json.dumps([runner.run(validate_experiment(tree), lambda event: None) for tree in json.load(sys.stdin)]))
"""


def example(title: str) -> str:
    """The Python of a section."""
    (code,) = re.findall(r"^```python\n(.*?)^```", section(title), re.M | re.S)
    return code


def write_spleens(folder) -> None:
    """Eight blocks of noise with a brighter block in each, and where that is."""
    for name in ("ct", "mask"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(8):
        image = random.normal(-50, 30, (28, 28, 36)).astype(np.int16)
        mask = np.zeros(image.shape, np.uint8)
        mask[8 : 16 + number, 8:20, 8:24] = 1
        image[mask > 0] += 150
        for kind, voxels in (("ct", image), ("mask", mask)):
            nib.Nifti1Image(voxels, np.eye(4)).to_filename(folder / kind / f"p{number}_1.nii.gz")


@pytest.mark.slow  # 21 s of CPU, most of it the imports of a process of its own
def test_the_examples_train_as_they_stand(tmp_path, home):
    package = shutil.copytree(PACKAGE, tmp_path / "copy" / "premed", ignore=shutil.ignore_patterns("__pycache__"))
    for path, title in PLUGINS.items():
        (package / f"{path}.py").write_text(example(title))
    write_spleens(tmp_path / "spleen")
    write_chestxray14(tmp_path / "chestxray14", 12, 0, size=32, prevalence=0.4)

    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([XRAYS, SPLEENS]),
        env=os.environ | {"PYTHONPATH": f"{package.parent}:{REPOSITORY / 'tests'}", "PREMED_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    for outcome in json.loads(done.stdout.splitlines()[-1]):
        assert [stage["kind"] for stage in outcome["stages"]] == ["pretrain", "finetune", "test"]
        assert [stage["num_steps"] for stage in outcome["stages"][:2]] == [4, 4]
        assert all(np.isfinite(value) for stage in outcome["stages"] for value in stage["summary"].values())
