"""The page of a comparison in a real browser without a window: it draws, and its slider can be dragged."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_modules.evaluation.comparison import compare
from lightning_modules.evaluation.figures import panels
from lightning_modules.evaluation.page import write_page
from tests.lightning_modules.evaluation.made_up import numbers, pictures, results_file

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason="chromium and chromedriver are not installed")
SIZE = 192


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    named = []
    for name, shade in (("dark <b>", -60), ("bright", 60)):
        values = {"psnr_y": numbers(shade + 60, 3, 30)}
        images = pictures(folder / name[:4], list(values["psnr_y"]), shade, SIZE)
        named.append((name, results_file(folder / name[:4], values, pictures=images, name=name)))
    comparison = compare(named, None, None)
    write_page(comparison, panels(comparison, 3), [], folder / "compare.html")
    return folder / "compare.html"


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


class Page:
    """The open page."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get(path.as_uri())
        self.wait("0|bicubic|dark <b>|false")

    def wait(self, drawn: str) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: self.find("#stage").get_attribute("data-drawn") == drawn)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def choose(self, selector: str, label: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.find(selector)).select_by_visible_text(label)

    def screenshot(self) -> np.ndarray:
        """The pictures as they are seen, `[H,W,3]` in pixels of the image."""
        seen = Image.open(io.BytesIO(self.find("#stage").screenshot_as_png)).convert("RGB")
        return np.asarray(seen.resize((SIZE, SIZE)), dtype=int)


def test_two_methods_are_drawn_side_by_side_without_an_error(browser: Any, page: Path) -> None:
    shown = Page(browser, page)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    shown.choose("#left", "bright")
    shown.choose("#right", "HR")
    shown.wait("0|bright|HR|false")
    at_left = shown.screenshot()
    shown.choose("#left", "HR")
    shown.wait("0|HR|HR|false")
    hr = shown.screenshot()
    # Half of the shaded corner, 104 to 184, lies to the right of the border, where HR is shown.
    assert abs(at_left - hr)[30:80].mean() < 1
    browser.execute_script("split(75)")
    shown.choose("#left", "bright")
    shown.wait("0|bright|HR|false")
    moved = shown.screenshot()
    corner = np.s_[110:130, 110:135]
    assert (moved - hr)[corner].mean() > 20, "the method to the left of the border is not shown"
    assert abs(moved - hr)[110:130, 150:180].mean() < 1, "the method to the right of the border is not shown"


def test_the_slider_follows_a_drag_and_the_keys(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    shown = Page(browser, page)
    shown.choose("#left", "bright")
    shown.choose("#right", "dark <b>")
    shown.wait("0|bright|dark <b>|false")
    before = shown.screenshot()
    bar, stage = shown.find("#bar"), shown.find("#stage")
    assert bar.get_attribute("aria-valuenow") == "50"
    width = stage.size["width"]
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(width // 4, 0).release().perform()
    assert abs(int(bar.get_attribute("aria-valuenow")) - 75) <= 2
    after = shown.screenshot()
    uncovered = np.s_[110:130, 106:135]
    assert (after - before)[uncovered].mean() > 40, "dragging did not uncover the brighter picture"

    bar.send_keys(Keys.ARROW_LEFT)
    assert abs(int(bar.get_attribute("aria-valuenow")) - 73) <= 2
    bar.send_keys(Keys.HOME)
    assert bar.get_attribute("aria-valuenow") == "0"


def test_the_error_map_is_black_where_nothing_is_wrong(browser: Any, page: Path) -> None:
    shown = Page(browser, page)
    shown.choose("#left", "bright")
    shown.find("#error").click()
    shown.wait("0|bright|dark <b>|true")
    browser.execute_script("split(100)")
    seen = shown.screenshot()
    assert seen[20:80, 50:80].max() < 3
    assert seen[110:130, 110:130].mean() > 150


def test_another_image_is_drawn(browser: Any, page: Path) -> None:
    shown = Page(browser, page)
    first = shown.screenshot()
    other = shown.find("#image option:nth-child(2)").text
    shown.choose("#image", other)
    shown.wait("1|bicubic|dark <b>|false")
    assert abs(shown.screenshot() - first).mean() > 0.5
