"""The documentation: the tutorial's commands run, and every page and picture that is linked exists."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_modules.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + sorted(DOCS.glob("methods/*.md"))
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
CONFIG = re.compile(r"\bconfigs/[\w./@-]+\.yaml")

PLACEHOLDERS = {"X", "NAME"}  # stand for any file

# What makes a training of the tutorial tiny.
TINY = {
    "trainer.max_steps": "2",
    "trainer.val_check_interval": "2",
    "trainer.precision": "32-true",
    "data.init_args.crop": "64",
    "data.init_args.batch_size": "1",
    "data.init_args.num_workers": "0",
}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `lightning` command in a page's blocks."""
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "lightning":
                yield words


def test_the_tutorial_runs_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, count in (("photographs", 10), ("testset", 2)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (12, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((208, 192)).save(tmp_path / folder / f"{index}.png")

    monkeypatch.chdir(tmp_path)
    typed = list(commands(DOCS / "tutorial.md"))
    assert {words[1] for words in typed} >= {"pack", "doctor", "plan", "fit", "test", "compare", "enlarge", "export"}
    for words in typed:
        tiny = [part for name, value in TINY.items() for part in (f"--{name}", value)]
        extra = tiny if words[1] in ("fit", "plan") else []
        extra += ["--workers", "1"] if words[1] == "pack" else []
        if words[1] == "test":  # which starts itself for each set
            subprocess.run([sys.executable, "-m", "lightning_modules.cli", *words[1:]], check=True, timeout=300)
            continue
        monkeypatch.setattr(sys, "argv", [*words, *extra])
        try:
            main()
        except SystemExit as end:
            assert not end.code, f"{shlex.join(words)}: {end.code}"

    assert (tmp_path / "table" / "compare.tex").is_file()
    assert len(list((tmp_path / "enlarged").glob("*.png"))) == 2


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_configs_and_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for target in LINK.findall(text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links {target}"
    for named in CONFIG.findall(text):
        if Path(named).stem in PLACEHOLDERS:
            continue
        assert (ROOT / named).is_file(), f"{page.name} names {named}"
    for words in commands(page):
        assert len(words) == 1 or words[1] in COMMANDS or words[1].startswith("-"), f"{page.name}: {shlex.join(words)}"


def test_every_page_is_in_the_navigation() -> None:
    def pages(part: object) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
            yield from pages(inner)

    listed = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES}
