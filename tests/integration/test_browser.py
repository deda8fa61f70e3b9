"""What a person sees in a real browser: the runs in MLflow's UI, and the page of a comparison.

make test-cluster, or pytest -m browser
"""

import json
import os
import subprocess
import sys
from statistics import fmean

import pytest
from integration.browsing import SEEDS, STRATEGIES, chromium, fill
from support.experiments import settle_in, store_of
from support.stores import come_up, free_port, stop
from support.suite import REPOSITORY

pytest_plugins = ["support.experiment_fixtures"]
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

TASK, SCORE = "chestxray14", "test/mauc"
TASKS = (TASK, "Task04_Hippocampus", "clinic")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def home(browser, new_home, tmp_path_factory):
    """Three strategies and tasks, three seeds of the first task's, and one experiment on half of its labels."""
    home = new_home()
    with pytest.MonkeyPatch.context() as patch:
        settle_in(patch, home)
        fill(tmp_path_factory.mktemp("data"))
    return home


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The file with what `premed ui` prints."""
    return tmp_path_factory.mktemp("ui") / "printed"


@pytest.fixture(scope="module")
def ui(home, printed):
    """Where `premed ui` serves it."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "premed", "ui", "--port", str(port), "--no-open"]
    with printed.open("w") as file:
        about = {"env": environment | {"PREMED_HOME": str(home)}, "start_new_session": True, "stderr": file}
        server = subprocess.Popen(command, **about)
    try:
        come_up(server, port)
        while "Ctrl-C" not in printed.read_text():  # told by another process, once it has seen the answer
            server.poll()
        yield f"http://127.0.0.1:{port}/#"
    finally:
        stop(server)


@pytest.fixture(scope="module")
def store(home):
    return store_of(home)


def runs(store, task=TASK, **tags):
    """Runs by their names."""
    return {run.name: run for run in store.search(tags, experiment=task)}


def listed(browser):
    """The names of the runs that a page's table shows."""
    return [name for link in browser.all(".ag-root a[href*='/runs/']") if (name := link.text.strip())]


def filtered(browser, ui, store, text):
    """Opens the X-rays' runs, types a filter and sorts, as docs/mlflow-ui.md has it."""
    browser.open(f"{ui}/experiments/{store.experiment(TASK)}/runs")
    browser.until("any run", lambda: listed(browser))
    browser.type("[data-testid=search-box]", text)
    browser.click("[data-testid=sort-select-dropdown]")
    browser.click("[data-testid='sort-select-Run Name']")


def titles(stage, strategies=STRATEGIES, seeds=SEEDS, share="100 %"):
    return {f"{strategy} {share} seed {seed} {stage}".strip() for strategy in strategies for seed in seeds}


HALF = titles("test", ["none"], [0], "50 %")
FILTERS = {
    'tags.stage = "test"': titles("test") | HALF,
    'tags.task = "chestxray14" and tags.stage = "test" and tags.label_fraction = "0.5"': HALF,
    'tags.stage = "finetune" and tags.strategy = "mae"': titles("fine-tuning", ["mae"]),
    'tags.stage = "experiment" and tags.seed = "1"': titles("", seeds=[1]),
    'tags.stage = "pretrain"': {"mae pre-training seed 0"},
}


@pytest.mark.parametrize("text", FILTERS)
def test_a_documented_filter_leaves_its_runs(browser, ui, store, text):
    assert text in (REPOSITORY / "docs" / "mlflow-ui.md").read_text()
    filtered(browser, ui, store, text)
    browser.until(f"{len(FILTERS[text])} runs of {text}", lambda: sorted(listed(browser)) == sorted(FILTERS[text]))


def test_the_runs_that_stand_on_a_pre_training_are_found_by_it(browser, ui, store):
    (pretrain,) = runs(store, stage="pretrain").values()
    filtered(browser, ui, store, f'tags.pretrain_run = "{pretrain.run_id}" and tags.stage = "test"')
    browser.until("its three tests", lambda: sorted(listed(browser)) == sorted(titles("test", ["mae"])))


def test_runs_grouped_by_strategy_show_its_mean_over_seeds(browser, ui, store):
    filtered(browser, ui, store, 'tags.stage = "test" and tags.label_fraction = "1"')
    browser.until("nine tests", lambda: len(listed(browser)) == 9)
    browser.click("[data-testid=column-selection-dropdown]")
    browser.click(f"[title='{SCORE}']")
    browser.escape()
    browser.click("button", "Group by")
    browser.click("[role=menuitemcheckbox]", "strategy")
    tested = runs(store, stage="test")
    for strategy in STRATEGIES:
        mean = fmean(tested[name].metrics[SCORE] for name in titles("test", [strategy]))
        shown = browser.see(f"[row-id='tag.strategy.{strategy}'] [col-id='metrics.`{SCORE}`']", ".").text
        assert float(shown.split()[0]) == pytest.approx(mean)


def test_selected_runs_stand_side_by_side_with_their_scores(browser, ui, store):
    filtered(browser, ui, store, 'tags.stage = "test" and tags.seed = "0" and tags.label_fraction = "1"')
    names = titles("test", seeds=[0])
    browser.until("three tests", lambda: sorted(listed(browser)) == sorted(names))
    browser.click(".ag-header-select-all:not(.ag-hidden)")
    browser.click("[data-testid=runs-compare-button]")
    browser.see("body", "Comparing 3 Runs")
    tested = runs(store, stage="test")
    shown = browser.until("the scores", lambda: len((found := compared(browser)).get(SCORE, ())) == 3 and found)
    order = [name for name in browser.see(".mlflow-compare-run-table").text.splitlines() if name in names]
    assert sorted(order) == sorted(names)
    for metric in (SCORE, "test/low", "test/high"):
        wanted = [tested[name].metrics[metric] for name in order]
        assert [float(value) for value in shown[metric]] == pytest.approx(wanted, abs=5e-4)


def compared(browser):
    """The metrics of the comparing page: {name: a text for each run}."""
    script = """
      const rows = {};
      for (const cell of document.querySelectorAll(".ReactVirtualized__Grid__innerScrollContainer > *")) {
        const {top, left} = cell.getBoundingClientRect();
        (rows[Math.round(top)] ??= []).push([left, cell.innerText.trim()]);
      }
      return Object.values(rows).map(row => row.sort((a, b) => a[0] - b[0]).map(cell => cell[1]));
    """
    return {name: values for name, *values in browser.driver.execute_script(script)}


def test_a_run_shows_its_pictures(browser, ui, store):
    for name, picture in (("mae pre-training seed 0", "reconstruction"), ("mae 100 % seed 0 test", "probabilities")):
        run = runs(store)[name]
        browser.open(f"{ui}/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts")
        browser.click("[data-testid=artifact-tree-node]", "pictures")
        browser.click("[data-testid=artifact-tree-node]", f"{picture}.png")
        browser.until("the picture", browser.drawn)


def test_a_task_has_one_model_and_its_best_version_and_its_run_lead_to_each_other(browser, ui, store):
    browser.open(f"{ui}/models")
    browser.until("three models", lambda: {link.text for link in browser.all("a[href*='/models/']")} >= {*TASKS})
    browser.click("[role=dialog] button", "Try it now")  # a new profile is greeted, once
    browser.click("a[href*='/models/']", TASK)
    best = store.client.get_model_version_by_alias(TASK, "best")
    row, name = browser.see("[role=row]", "@ best").text, store.get(best.run_id).name
    assert f"Version {best.version}\n" in row and name in row
    browser.click(f"[role=row] a[href$='/versions/{best.version}']")
    browser.click(f"a[href*='/runs/{best.run_id}']")
    browser.see("h1, h2", name)
    browser.click(f"a[href*='/models/{TASK}/versions/{best.version}']")
    browser.see("body", f"Version {best.version}")


# ---- the addresses that `premed ui` prints


def viewed(browser, printed, more=""):
    """Opens the X-rays' view, at the address that the command printed."""
    (address,) = [line.split()[-1] for line in printed.read_text().splitlines() if line.startswith(f"{TASK} ")]
    browser.open(address + more)
    browser.until("the experiments", lambda: len(listed(browser)) == 10)


def test_the_printed_view_answers_which_strategy_is_best(browser, ui, printed, store):
    """Under Model training, the experiments alone, grouped by arm, with the mean of their scores, the best first."""
    viewed(browser, printed)
    assert sorted(listed(browser)) == sorted([*titles(""), "none 50 % seed 0"])
    assert not [link for link in browser.all("a") if link.text in ("Prompts", "Judges")]  # they are of GenAI
    runs_of = runs(store, stage="experiment")
    for strategy in STRATEGIES:
        mean = fmean(runs_of[name].metrics[SCORE] for name in titles("", [strategy]))
        row = f"[row-id='param.arm.{strategy} 100 %']"
        assert float(browser.see(f"{row} [col-id='metrics.`{SCORE}`']", ".").text.split()[0]) == pytest.approx(mean)
    heads = browser.see(".ag-header", SCORE).text.split("\n")
    assert {"val/mauc", "below_gate", "seconds", "mask_ratio"} <= {*heads}


def test_experiments_side_by_side_have_an_axis_for_what_tells_them_apart(browser, ui, printed, store):
    viewed(browser, printed)
    browser.click(".ag-header-select-all:not(.ag-hidden)")
    browser.click("[data-testid=runs-compare-button]")
    browser.see("body", "Comparing 10 Runs")
    axes = browser.until("the plot", lambda: [axis.text for axis in browser.all(".axis-title") if axis.text])
    assert axes == ["arm", "label_fraction", "mask_ratio", SCORE]


def test_the_charts_of_the_view_have_a_bar_for_each_arm(browser, ui, printed):
    viewed(browser, printed, "&compareRunsMode=CHART")
    browser.until("the bars", lambda: len(browser.all(".barlayer .point")) >= 4)


def test_the_list_of_experiments_has_the_tasks_and_no_service_of_premed_s(browser, ui):
    browser.open(f"{ui}/experiments")
    browser.until("the tasks", lambda: {link.text for link in browser.all("a[href*='/experiments/']")} >= {*TASKS})
    assert "premed leases" not in browser.see("body").text


# ---- the page of a comparison


@pytest.fixture(scope="module")
def page(home, tmp_path_factory):
    """The file, and the numbers as JSON has them."""
    path = tmp_path_factory.mktemp("page") / "compare.html"
    command = [sys.executable, "-m", "premed", "compare", "--json", "--html", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, env=environment | {"PREMED_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)


def test_the_page_of_a_comparison_opens_from_disk_without_error_or_network(browser, page):
    browser.forget()
    browser.open(page[0].as_uri())
    browser.see("h1", "Comparison")
    assert browser.errors() == []
    asked = {each.partition(":")[0] for each in browser.requests()}
    assert "file" in asked and asked <= {"file", "data", "about"}
    assert browser.drawn()


def test_the_page_s_tables_have_the_numbers(browser, page):
    path, result = page
    browser.open(path.as_uri())
    lines = [{*line} for line in browser.table("table")]
    for task in result["tasks"]:
        for row in task["blocks"][0]["rows"]:
            for found in row["scores"].values():
                low, high = found["interval"]
                spread = f" ± {found['std']:.3f}" if row["num_seeds"] > 1 else ""
                wanted = {row["label"], f"{found['mean']:.3f}{spread}", f"[{low:.3f}, {high:.3f}]"}
                assert any(wanted <= line for line in lines), wanted
