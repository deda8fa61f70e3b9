"""Pages as a browser lays them out: on a phone, on a dark screen, on paper.

make test-cluster, or pytest -m browser
"""

import numpy as np
import pytest
from integration.browsing import chromium
from support.comparing import add, leave, variety, xrays
from support.memory_store import MemoryStore
from support.sweeping import full_grid

from premed.data import figures
from premed.reporting.comparison import page as comparison
from premed.reporting.comparison.compare import compare
from premed.reporting.html import render
from premed.reporting.sweep import page as sweep

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PHONE, SCREEN, PAPER = 390, 1280, 718  # pixels; A4 within its margins
PAGES = ("comparison", "sweep", "data check")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind, of nearly everything that it may hold, with names that are long."""
    folder = tmp_path_factory.mktemp("pages")
    long = "a/folder/of_some_patient/0123456789012345678901234567890123456789/frontal.png"
    store = MemoryStore(folder / "runs")
    variety(store)
    for strategy in ("none", "mae"):
        rows = [row | {"case": f"{long}{row['case']}"} for row in xrays(1.0 + len(strategy))]
        rows = [{name.replace("heart", "h" * 90): value for name, value in row.items()} for row in rows]
        add(store, strategy, 0, rows, change={"task": {"name": "a_task_with_a_long_name" * 3}})
    image = figures.probabilities(folder / "probabilities.png", [(long, np.eye(20), {"x": (1, 0.9)})] * 4)
    leave(store, next(iter(store.search({"premed.kind": "test"}))).run_id, folder / "t",
          pictures=[("probabilities.png", image.read_bytes())])  # fmt: skip
    outcome = {"task": "images", "root": f"/data/{long}", "classes": {"train": {"x" * 60: 3}, "val": {}}}
    texts = {
        "comparison": comparison.page(compare(store), store),
        "sweep": sweep.render(full_grid()),
        "data check": render(
            "data_check.html.jinja", title="data check", outcome=outcome, summary="1 error", thumbnails=[], legend={},
            findings=[("error", long, f"cannot be read: {long}")], classes=["x" * 60],
        ),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return folder


@pytest.fixture
def shown(browser, pages):
    """Opens a page; what JavaScript says of it."""

    def of(name, width, scheme="light", media="screen", ask="return document.documentElement.scrollWidth"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.open((pages / f"{name}.html").as_uri())
        return browser.driver.execute_script(ask)

    return of


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_wide_as_a_phone_and_its_tables_scroll_by_themselves(shown, name):
    assert shown(name, PHONE) <= PHONE


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_wide_as_paper(shown, name):
    assert shown(name, PAPER, media="print") <= PAPER


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_dark_where_that_is_preferred_and_light_on_paper(shown, name):
    ask = """
      const light = colour => Math.max(...colour.match(/\\d+/g).slice(0, 3).map(Number));
      const style = getComputedStyle(document.body);
      return [light(style.backgroundColor), light(style.color)];
    """
    paper, ink = shown(name, SCREEN, "dark", ask=ask)
    assert paper < 60 and ink > 200
    for scheme, media in (("light", "screen"), ("dark", "print")):
        paper, ink = shown(name, SCREEN, scheme, media, ask)
        assert paper > 240 and ink < 60


def test_charts_are_inverted_in_the_dark_and_pictures_of_images_are_not(shown):
    ask = """
      const filters = kind => [...document.images].filter(image => image.src.startsWith(`data:image/${kind}`))
        .map(image => getComputedStyle(image).filter);
      return [[...new Set(filters("svg"))], [...new Set(filters("png"))]];
    """
    charts, pictures = shown("comparison", SCREEN, "dark", ask=ask)
    assert pictures == ["none"] and charts and all("invert" in each for each in charts)


def test_what_is_folded_is_printed(shown):
    ask = """
      const folded = [...document.querySelectorAll("details:not([open]) td")];
      return [folded.length, folded.filter(cell => cell.checkVisibility({contentVisibilityAuto: true})).length];
    """
    cells, visible = shown("comparison", PAPER, media="print", ask=ask)
    assert cells == visible > 10
    assert shown("comparison", SCREEN, ask=ask)[1] == 0


def test_a_case_opens_and_closes_by_the_keyboard_alone(shown, browser):
    from selenium.webdriver.common.keys import Keys

    shown("comparison", PHONE)
    ask = "return [...document.querySelectorAll('details.cases, details.case')].map(each => each.open)"
    browser.driver.execute_script("document.querySelector('details.cases > summary').focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.driver.execute_script(ask)[:2] == [True, False]
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.SPACE)
    assert browser.driver.execute_script(ask)[:2] == [True, True]
    width = "return [document.documentElement.scrollWidth, document.querySelector('details.case .inside').offsetHeight]"
    across, height = browser.driver.execute_script(width)
    assert across <= PHONE and height > 20
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.driver.execute_script(ask)[:2] == [True, False]


def test_a_click_on_the_methods_selects_them_whole(shown, browser):
    shown("comparison", SCREEN)
    browser.click("blockquote.methods")
    selected = browser.driver.execute_script("return document.getSelection().toString()")
    assert selected.startswith("On ") and selected.rstrip().endswith(".") and len(selected) > 500
