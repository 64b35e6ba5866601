"""The gallery: what is in the page, and in a real browser without a window what is seen."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.photograph import Photograph
from lightning_modules.enlarging.command import main
from lightning_modules.enlarging.gallery import HEIGHT, WIDTH, Gallery
from tests.datamodules.trees import save
from tests.lightning_modules.enlarging.copying import checkpoint
from tests.lightning_modules.evaluation.test_page_in_a_browser import CHROMIUM, DRIVER, browser  # noqa: F401


def photograph(name: str, height: int, width: int, shade: int) -> Photograph:
    return Photograph(name, np.full((height, width, 3), shade, np.uint8))


def pictures(page: Path) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def test_one_file_with_both_pictures_of_each_and_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a <b>.png", "sub/c.png"):
        save(tmp_path / "in" / name, 0)
    typed = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--gallery"]
    assert main([*typed, "--ckpt", checkpoint(tmp_path / "copy.ckpt"), "--device", "cpu"]) == 0
    page = tmp_path / "out" / "gallery.html"
    assert str(page) in capsys.readouterr().out
    content = page.read_text()
    assert "a &lt;b&gt;" in content and "a <b>" not in content
    for link in re.findall(r'href="([^"]+)"', content):
        from urllib.parse import unquote

        assert (page.parent / unquote(link)).is_file()
    assert [image.size for image in pictures(page)] == [(64, 48)] * 4
    assert not re.search(r'(src|href)="https?:', content), "it needs no network"


def test_of_large_pictures_the_part_with_detail_is_shown_at_its_own_size(tmp_path: Path) -> None:
    before = np.full((1200, 1600, 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 1), dtype=np.uint8)
    before[1000:1100, 1400:1500] = noise
    after = before.repeat(2, axis=0).repeat(2, axis=1)
    gallery = Gallery(tmp_path / "page.html")
    gallery.add("a", Photograph("a", before), Photograph("a", after), tmp_path / "a.png")
    gallery.write()
    old, new = (np.asarray(image).astype(float) for image in pictures(tmp_path / "page.html"))
    assert old.shape == new.shape == (HEIGHT, WIDTH, 3)
    assert new.std() > 10 and np.abs(old - new).mean() < 20, "the same place, with the detail"


@pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason="chromium and chromedriver are not installed")
def test_the_border_of_each_picture_follows_its_own_drag(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    from selenium.webdriver import ActionChains, Keys

    gallery = Gallery(tmp_path / "page.html")
    for name in ("first", "second"):
        gallery.add(name, photograph(name, 50, 100, 40), photograph(name, 200, 400, 220), tmp_path / f"{name}.png")
    gallery.write()
    browser.get(gallery.path.as_uri())
    stages = browser.find_elements("css selector", ".stage")
    assert len(stages) == 2

    def border(stage: Any) -> float:
        """The share of the width at which dark becomes bright, as it is seen."""
        seen = Image.open(io.BytesIO(stage.screenshot_as_png)).convert("L")
        row = np.asarray(seen)[seen.height // 4]
        return float((row < 130).mean())

    assert border(stages[0]) == pytest.approx(0.5, abs=0.03)
    width = stages[0].size["width"]
    ActionChains(browser).move_to_element(stages[0]).click_and_hold().move_by_offset(width // 4, 0).release().perform()
    assert border(stages[0]) == pytest.approx(0.75, abs=0.03)
    assert border(stages[1]) == pytest.approx(0.5, abs=0.03)
    bar = stages[1].find_element("css selector", ".bar")
    bar.send_keys(Keys.HOME)
    assert bar.get_attribute("aria-valuenow") == "0" and border(stages[1]) < 0.03
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
