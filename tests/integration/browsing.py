"""A store with real little runs of three strategies, seeds and tasks, and the browser in which a person looks at it."""

import json
import shutil
import tempfile
from contextlib import contextmanager

import pytest
import timm.models.vision_transformer as timm_vit
import torch
from safetensors.torch import save_file
from support.experiments import TINY

from premed.config.compose import merge
from premed.config.expand import fan_out
from premed.data.phantoms.thorax import write_images
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.execution import runner

STRATEGIES, SEEDS = ("none", "mae", "imagenet"), (0, 1, 2)
PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=2400,1400",  # a table renders the columns that are in sight
)
PATIENCE = 300  # seconds for a page; the first takes long where the machine is busy


# ---- the runs


def fill(data):
    """Runs the experiments, on phantoms below the folder `data`, into the store of the home in use; their outcomes.

    The X-rays' have all seeds; the other tasks' have the first alone, for nothing is asked of their seeds.
    """
    write_chestxray14(data / "chestxray14", 30, 0, size=32)
    write_msd(data / "Task04_Hippocampus", 8, seed=0)
    write_images(data / "clinic", 30, 0, size=32)
    chest, *others = tasks(data)
    experiments = [each for tree in trees(data, chest, SEEDS) for each in fan_out(tree)]
    experiments += [each for task in others for tree in trees(data, task, SEEDS[:1]) for each in fan_out(tree)]
    few = {"finetune": {"label_fraction": 0.5}}
    experiments += fan_out(merge(next(trees(data, chest, SEEDS[:1])), few))
    outcomes = runner.run_all(experiments, lambda event: None)
    assert not [each["failure"] for each in outcomes if "failure" in each]
    return outcomes


def tasks(data):
    """Fields of an experiment, by task: X-rays with several labels, volumes, and a folder with a table."""
    chest, brain, clinic = (str(data / name) for name in ("chestxray14", "Task04_Hippocampus", "clinic"))
    short = {"epochs": 1, "steps": 2, "batch": 2}
    volumes = {"pretrain": short, "finetune": short | {"head": {"name": "unetr", "feature_size": 4}}}
    return [
        {"task": {"name": "chestxray14", "root": chest, "size": 16, "stored": 32}},
        {"task": {"name": "msd", "root": brain, "roi": [16, 16, 16], "spacing": [3.0, 3.0, 3.0]}} | volumes,
        {"task": {"name": "images", "root": clinic, "roi": [16, 16], "label": "pneumonia"}},
    ]


def trees(data, task, seeds):
    """A task's experiments as YAMLs would hold them, one for each strategy."""
    file = data / "vit.safetensors"
    if not file.is_file():
        settings = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
        torch.manual_seed(0)  # weights of a test's file, not a draw of premed's
        save_file(timm_vit.VisionTransformer(**settings).state_dict(), file)
    pretexts = {
        "none": {"name": "none"},
        "mae": TINY["pretext"],
        "imagenet": {"name": "imagenet", "weights": str(file), "model": "vit_tiny_patch16_224"},
    }
    for strategy in STRATEGIES:
        whole = merge(merge(TINY, {"encoder": {"depth": 3}, "seeds": list(seeds)}), task)
        whole |= {"pretext": pretexts[strategy]}
        yield whole if strategy == "mae" else {name: part for name, part in whole.items() if name != "pretrain"}


# ---- the browser


class Browser:
    """Headless Chromium. What is asked of a page is waited for."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get("about:blank")  # else a change behind the # alone loads nothing
        self.driver.get(address)

    def until(self, what, found):
        """What `found()` gives as soon as it is true; elements that go while it looks are looked for again."""
        from selenium.common.exceptions import TimeoutException, WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE, ignored_exceptions=[WebDriverException])
        try:
            return waiting.until(lambda driver: found())
        except TimeoutException:
            seen = self.driver.find_element("css selector", "body").text
            raise AssertionError(f"{what} is not on {self.driver.current_url}, which says: {seen}") from None

    def all(self, css):
        """The elements that are there now."""
        return self.driver.find_elements("css selector", css)

    def see(self, css, text=""):
        """The first element that matches and holds the text."""
        return self.until(f"{css} {text}", lambda: next((e for e in self.all(css) if text in e.text), None))

    def click(self, css, text=""):
        self.until(f"{css} {text} to click", lambda: self.see(css, text).click() or True)

    def type(self, css, text):
        """In place of what the field holds, then Enter."""
        from selenium.webdriver.common.keys import Keys

        field = self.see(css)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text, Keys.ENTER)

    def escape(self):
        """Closes the menu that is open."""
        from selenium.webdriver.common.keys import Keys

        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)

    def table(self, css):
        """The texts of all rows' cells."""
        script = (
            "return [...document.querySelectorAll(arguments[0] + ' tr')].map(r => [...r.cells].map(c => c.innerText))"
        )
        return [[cell.strip() for cell in row] for row in self.driver.execute_script(script, css)]

    def drawn(self):
        """The pictures on the page that have arrived."""
        script = "return [...document.images].filter(i => i.complete && i.naturalWidth > 100).map(i => i.src)"
        return self.driver.execute_script(script)

    def forget(self):
        """Leaves the page, whose scripts may go on asking, and what it told and asked for."""
        self.driver.get("about:blank")
        self.errors(), self.requests()

    def errors(self):
        """What the console says is wrong, since the last call."""
        return [each["message"] for each in self.driver.get_log("browser") if each["level"] == "SEVERE"]

    def requests(self):
        """The addresses that pages asked for, since the last call."""
        result = [json.loads(each["message"])["message"] for each in self.driver.get_log("performance")]
        return [each["params"]["request"]["url"] for each in result if each["method"] == "Network.requestWillBeSent"]


@contextmanager
def chromium():
    """A Browser with a profile of its own; the test is skipped, by name, where there is none."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"{' and '.join(missing)} not on PATH: apt-get install chromium chromium-driver")
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which(PROGRAMS[0])
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(PROGRAMS[1])))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
