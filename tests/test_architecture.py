"""What keeps the house in order where import-linter cannot see."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from support.suite import REPOSITORY

from premed.config.compose import load
from premed.config.expand import load_all
from premed.config.plugins import PACKAGES, plugin
from premed.config.spec import Spec

pytest_plugins = ["support.store_fixtures"]
PACKAGE = REPOSITORY / "platform" / "premed"
FOLDERS = {kind: PACKAGE.joinpath(*package.split(".")) for kind, package in PACKAGES.items()}
PLUGINS = [(kind, path.stem) for kind, folder in FOLDERS.items() for path in sorted(folder.glob("[!_]*.py"))]
LAST = (
    "small",
    "probe",
    "pixels",
    "mit",
    "unet",
    "resenc",
    "small_resenc",
    "primus",
    "small_primus",
    "own",
)  # to give after a strategy file
SOURCES = sorted(PACKAGE.rglob("*.py"))
RECIPES = [path for path in (REPOSITORY / "experiments").glob("*/*.yaml") if "\nspace:" not in path.read_text()]
EXPERIMENTS = sorted(path for path in RECIPES if path.stem not in (*LAST, "evidence") and path.parent.name != "unimiss")
HEAVY = ("monai", "mlflow", "ray", "sklearn", "matplotlib", "timm", "torchvision")


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def found(look: Callable[[Path], list[str]], paths: Sequence[Path] = SOURCES) -> dict[str, list[str]]:
    """What `look` finds in each file, of those in which it finds something."""
    return {relative(path): faults for path in paths if (faults := look(path))}


def tracked() -> list[Path]:
    """Text files that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    paths = [REPOSITORY / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".gz", ".nii")]


def run(code: str, *arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)


def test_platform_is_a_folder_and_never_a_package():
    assert not (REPOSITORY / "platform" / "__init__.py").exists()
    assert run("import platform; print(platform.python_version())").stdout.startswith("3.")


# Plug-ins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "name"), PLUGINS)
def test_a_plugin_is_found_by_its_file_s_name(folder, name):
    module = plugin(folder, name)
    assert issubclass(module.Config, Spec)
    assert module.Config.model_fields["name"].default == name
    assert callable(module.build) or (folder, module.build) == ("pretext", None)
    assert module.__doc__ and module.Config.__doc__


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_wrong_plugin_name_lists_the_right_ones(folder):
    names = ", ".join(name for of, name in PLUGINS if of == folder)
    with pytest.raises(ValueError, match=f"'nonsense' is not one of {names}$"):
        plugin(folder, {"name": "nonsense"})


NAMED = re.compile(r"""(if|elif|while|and|or)\b.*\b(name|task|strategy|pretext|encoder|head)\b\s*(==|!=|in)\s*[("']""")


def test_nothing_branches_on_a_plugin_s_name():
    plugins = {name for _, name in PLUGINS} - {"none"}

    def branches(path: Path) -> list[str]:
        lines = [line.strip() for line in path.read_text().splitlines() if NAMED.search(line)]
        return [line for line in lines if any(f'"{name}"' in line for name in plugins)]

    assert found(branches, [path for path in SOURCES if path.parent.name != "cli"]) == {}


# YAML ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_every_experiment_loads_and_knows_its_stages_with_or_without_what_is_given_after_it(path, monkeypatch):
    monkeypatch.delenv("PREMED_DATA", raising=False)
    after = [path.with_name(f"{name}.yaml") for name in LAST]
    evidence = [path.with_name(name) for name in ("small.yaml", "evidence.yaml")]
    together = [[path], *([path, file] for file in after), [path, *evidence]]
    for files in (files for files in together if all(file.is_file() for file in files)):
        for experiment in load_all(files):
            assert [stage.kind for stage in experiment.stages(lambda kind: kind)][-2:] == ["finetune", "test"]


ON = {"small": [["chestxray14", "small"], ["hippocampus", "small"]], "": [["chestxray14"], ["btcv"]]}
"""The tasks, with what stands between their own file and MiT's; experiments/unimiss/*.yaml come after all of these."""


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments" / "unimiss").glob("*.yaml")), ids=relative)
def test_what_is_pre_trained_for_several_tasks_is_one_pre_training_of_them_all(path, monkeypatch):
    monkeypatch.delenv("PREMED_DATA", raising=False)
    known = set()
    for folder, *more in ON["small" if path.stem.startswith("small_") else ""]:
        task = REPOSITORY / "experiments" / folder
        files = [*(task / f"{name}.yaml" for name in ("none", *more, "mit")), path]
        pretrain, *_ = load(files).stages(lambda kind: kind)
        known.add((pretrain.kind, pretrain.digest()))
    assert len(known) == 1 and known.pop()[0] == "pretrain"


# Sizes, words and places ---------------------------------------------------------------------------------------------


def test_no_file_is_past_300_lines_and_no_function_past_60():
    def long(path: Path) -> list[str]:
        most = 350 if path.name == "contracts.py" else 300  # the page to read first is one page
        faults = ["the file"] if len(path.read_text().splitlines()) > most else []
        functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        return faults + [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > 60]

    assert found(long) == {}


def test_the_root_has_at_most_eight_files():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_a_package_s_init_is_a_docstring_without_imports():
    for path in (path for path in SOURCES if path.name == "__init__.py"):
        docstring, *more = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant), path
        version = ["__version__"] if path.parent == PACKAGE else []
        assert [ast.unparse(each).split(" = ")[0] for each in more] == version, path


COINED = re.compile("crew|fleet|desk|vault|ledger|lineup|contenders|exhibits|clinic(?!al)", re.I)


def test_modules_and_classes_have_the_field_s_names():
    def coined(path: Path) -> list[str]:
        classes = [node.name for node in nodes(path) if isinstance(node, ast.ClassDef)]
        return [name for name in (*path.relative_to(PACKAGE).parts, *classes) if COINED.search(name)]

    assert found(coined) == {}


FORBIDDEN = {
    "a registry's address": re.compile("index[-_]url *[=:]|find-links *[=:]|//pypi|//files[.]pythonhosted"),
    "a machine's path": re.compile("(?<![\\w.}])/(home|root|Users|work)/[a-z]"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what):
    paths = [path for path in tracked() if path.name != "test_architecture.py"]
    assert [relative(path) for path in paths if FORBIDDEN[what].search(path.read_text(errors="replace"))] == []


PICKLED = "allow_pickle|import (cloud)?pickle|from (cloud)?pickle|pickle[.]load|read_pickle|joblib|weights_only=False"


def test_nothing_is_pickled():
    def pickled(path: Path) -> list[str]:
        calls = [node for node in nodes(path) if isinstance(node, ast.Call)]
        loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
        unsafe = [call for call in loads if "weights_only=True" not in [ast.unparse(word) for word in call.keywords]]
        return re.findall(PICKLED, path.read_text()) + [ast.unparse(call) for call in unsafe]

    assert found(pickled) == {}


# The command line waits for nothing heavy ----------------------------------------------------------------------------

COMMAND = """
import sys
from premed.cli.app import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print(code, *[name for name in sys.argv[1].split(",") if name in sys.modules], file=sys.stderr)
"""


def command(*arguments: str, heavy: tuple[str, ...] = HEAVY, cwd: Path = REPOSITORY) -> tuple[str, str, str]:
    """Standard output, standard error, and the exit code with the heavy modules that were imported."""
    code = COMMAND.replace("    main()", "    heavy, sys.argv[1:] = sys.argv[1], sys.argv[2:]\n    main()")
    done = run(code.replace("sys.argv[1].split", "heavy.split"), ",".join(heavy), *arguments, cwd=cwd)
    *errors, output = done.stderr.splitlines()
    return done.stdout, "\n".join(errors), output


def test_help_imports_nothing_heavy():
    out, errors, output = command("--help")
    assert (output, errors) == ("0", "") and "run" in out


def test_what_compares_and_plans_waits_for_no_torch():
    """Which takes longer to import than the rest together."""
    modules = ", ".join(
        f"premed.reporting.{name}" for name in ("comparison.compare", "comparison.page", "sample_size.plan")
    )
    done = run(f"import sys, {modules}; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_data_sets_without_a_table_wait_for_no_pandas():
    done = run("import sys, premed.tasks.brats, premed.tasks.msd, premed.tasks.nnunet; print('pandas' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_a_mistake_in_a_yaml_is_one_line_exit_code_2_and_imports_nothing_heavy(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("task: {name: msd}\nencoder: {name: vit, widht: 5}\n")
    out, errors, output = command("run", str(path))
    assert (out, output) == ("", "2")
    assert errors == "premed: encoder.widht: no such field; did you mean width?"


@pytest.mark.parametrize(
    ("field", "mistake"),
    [
        ("finetune: {epochs: 1, batch: 4, lrr: 1}", "finetune.lrr: no such field; did you mean lr?"),
        ("train: {wrokers: 1}", "train.wrokers: no such field; did you mean workers?"),
        ("finetune: {epochs: 1, batch: 4, lr: -1}", "finetune.lr: Input should be greater than 0 (it is -1)"),
    ],
)
def test_a_mistake_outside_a_plug_in_is_told_before_torch_is_imported(tmp_path, field, mistake):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"task: {{name: msd}}\npretext: mae\n{field}\n")
    out, errors, output = command("run", str(path), heavy=("torch", *HEAVY))
    assert (out, errors, output) == ("", f"premed: {mistake}", "2")


REFUSED = {
    "predict without images": (["predict", "0" * 8, "absent.png", "--out", "out"], "absent.png: there is no such file"),
    "predict into a file": (["predict", "0" * 8, ".", "--out", "file"], "--out file: is a file; name a folder"),
    "predict, precision": (["predict", "0" * 8, ".", "--out", "out", "--precision", "half"], "--precision: "),
    "predict without a store": (["predict", "0" * 8, ".", "--out", "out"], "mlflow.db does not exist yet"),
    "export, format": (["export", "0" * 8, "--to", "out", "--format", "pt"], "--format: 'pt' is not one of"),
    "export, folder": (["export", "0" * 8, "--to", ".", "--format", "onnx"], ".: exists and is not empty"),
    "export, part": (["export", "0" * 8, "--to", "out", "--format", "onnx", "--whole"], "--part and --whole are for"),
    "export without a store": (["export", "0" * 8, "--to", "out", "--format", "onnx"], "mlflow.db does not exist yet"),
    "compare without a store": (["compare"], "mlflow.db does not exist yet"),
    "plan without a store": (["plan"], "mlflow.db does not exist yet"),
    "plan, picture": (["plan", "--picture", "plan.pdf"], "--picture plan.pdf: write a name that ends in"),
    "init, folder": (["init", "absent"], "absent is not a folder"),
    "init, file": (["init", ".", "--out", "file"], "file exists: remove it"),
    "data check, page": (["data", "check", "a.yaml", "--html", "no/page.html"], "its folder does not exist"),
    "data phantom": (["data", "phantom", "heart", "out"], "heart: has no phantoms"),
    "ui without a store": (["ui"], "mlflow.db does not exist yet"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_no_look_at_a_run_is_refused_before_anything_heavy_is_imported(what, tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").touch()
    arguments, words = REFUSED[what]
    out, errors, output = command(*arguments, heavy=("torch", *HEAVY), cwd=tmp_path)
    assert (out, output) == ("", "2") and "\n" not in errors and words in errors, errors


@pytest.mark.parametrize("form", [["predict", "--out", "out"], ["export", "--to", "out", "--format", "safetensors"]])
def test_a_run_that_is_not_there_is_told_before_torch_is_imported(form, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    name, *options = form
    images = ["."] if name == "predict" else []
    out, errors, output = command(name, "models:/chest@best", *images, *options, heavy=("torch",), cwd=tmp_path)
    assert (out, output) == ("", "2")
    assert errors.startswith("premed: models:/chest@best: no such model or version; no model is registered here")
