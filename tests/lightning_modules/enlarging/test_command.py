"""`lightning enlarge` as a photographer types it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.enlarging.command import main
from lightning_modules.enlarging.progress import Bar, Plan, Timing, duration, estimate
from lightning_modules.enlarging.sizes import SizeError
from tests.datamodules.trees import save
from tests.lightning_modules.enlarging.copying import Copying, checkpoint


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the checkpoint of a model for x2."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "copy.ckpt")
    return tmp_path


def enlarge(*typed: str) -> int:
    return main([*typed, "--weights", "copy.ckpt", "--device", "cpu"])


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_several_files_folders_and_patterns(here: Path) -> None:
    for name in ("a.png", "b.jpg", "trip/one.jpg", "trip/day 2/two.jpg", "other/c1.png", "other/c2.png", "other/d.png"):
        save(here / name, 0)
    assert enlarge("a.png", "b.jpg", "trip", "other/c*.png", "-o", "out") == 0
    assert written(here / "out") == ["a.png", "b.png", "c1.png", "c2.png", "trip/day 2/two.png", "trip/one.png"]
    assert enlarge("trip", "-o", "more/") == 0
    assert written(here / "more") == ["day 2/two.png", "one.png"]
    assert enlarge("**/d.png", "-o", "deep/") == 0
    assert written(here / "deep") == ["d.png"]


def test_a_file_of_the_name_of_a_pattern_comes_first(here: Path) -> None:
    save(here / "[a].png", 0)
    save(here / "a.png", 0)
    assert enlarge("[a].png", "-o", "out") == 0
    assert written(here / "out") == ["[a].png"]


def test_output_is_a_file_or_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "a.png", 0)
    for output, expected, form in (
        ("x.jpg", "x.jpg", "JPEG"),
        ("made/x.tif", "made/x.tif", "TIFF"),
        ("x.webp", "x.webp", "WEBP"),
        ("album", "album/a.png", "PNG"),
        ("is.jpg/", "is.jpg/a.png", "PNG"),
    ):
        assert enlarge("a.png", "-o", output) == 0
        with Image.open(here / expected) as image:
            assert (image.format, image.size) == (form, (64, 48))
    (here / "there.png").mkdir()
    assert enlarge("a.png", "-o", "there.png", "--format", "webp") == 0
    assert written(here / "there.png") == ["a.webp"]
    save(here / "b.png", 0)
    with pytest.raises(ValueError, match=r"--output all\.jpg: is one file, but there are 2 photographs; give a folder"):
        enlarge("a.png", "b.png", "-o", "all.jpg")
    with pytest.raises(ValueError, match=r"--format png: the output is called y\.jpg, which says jpg"):
        enlarge("a.png", "-o", "y.jpg", "--format", "png")


def test_what_fails_is_named_at_the_end_and_the_rest_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "good.png", 0)
    (here / "bad.png").write_bytes(b"no")
    assert enlarge("nothere.jpg", "bad.png", "good.png", "z*.png", "-o", "out") == 1
    said = capsys.readouterr()
    assert "1 photograph enlarged, 3 failed" in said.out
    assert said.err.rstrip().splitlines()[-4:] == [
        "error: not enlarged:",
        "  nothere.jpg: no such file or folder of images",
        "  z*.png: no file matches this pattern",
        "  bad.png: not an image that can be read",
    ]
    assert written(here / "out") == ["good.png"]


def test_existing_results_are_kept_skipped_or_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        save(here / "in" / name, 0)
    (here / "out").mkdir()
    (here / "out" / "a.png").write_bytes(b"mine")
    assert enlarge("in", "-o", "out") == 1
    assert "out/a.png: exists, and nothing is overwritten; --skip_existing" in capsys.readouterr().err
    assert (here / "out" / "a.png").read_bytes() == b"mine" and size(here / "out" / "b.png") == (64, 48)
    assert enlarge("in", "-o", "out", "--skip_existing") == 0
    assert "0 photographs enlarged, 2 skipped, whose files exist" in capsys.readouterr().out
    assert enlarge("in", "-o", "out", "--overwrite") == 0
    assert size(here / "out" / "a.png") == (64, 48)
    with pytest.raises(ValueError, match="skip_existing and overwrite"):
        enlarge("in", "-o", "out", "--overwrite", "--skip_existing")


def test_a_photograph_is_never_replaced_by_its_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "in" / "a.png", 0)
    save(here / "in" / "b.jpg", 0)
    before = (here / "in" / "a.png").read_bytes()
    assert enlarge("in", "-o", "in", "--overwrite") == 1
    assert "in/a.png: is one of the photographs; give another folder or name" in capsys.readouterr().err
    assert (here / "in" / "a.png").read_bytes() == before and size(here / "in" / "b.png") == (64, 48)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--scale", "2"], (64, 48)),
        (["--scale", "3"], (96, 72)),
        (["--scale", "4"], (128, 96)),
        (["--size", "48x100"], (48, 36)),
        (["--width", "40"], (40, 30)),
        (["--height", "12"], (16, 12)),
    ],
)
def test_sizes_are_sampled_and_resampled_and_said(
    typed: list[str], expected: tuple[int, int], here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(here / "a.png", 0)
    assert enlarge("a.png", "-o", "x.png", *typed) == 0
    assert size(here / "x.png") == expected
    assert ("sampled" in caplog.text) == (expected != (64, 48))


def test_a_size_in_between_is_antialiased(here: Path) -> None:
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(here / "a.png")
    assert enlarge("a.png", "-o", "x.png", "--width", "41") == 0
    with Image.open(here / "x.png") as image:
        inner = np.asarray(image)[4:-4, 4:-4].astype(float)
    assert 100 < inner.mean() < 155
    assert enlarge("a.png", "-o", "y.png", "--width", "10") == 0
    with Image.open(here / "y.png") as image:
        assert np.abs(np.asarray(image)[2:-2, 2:-2].astype(float) - 127.5).max() < 30, "stripes must become grey"


def test_what_is_too_large_is_refused_before_it_is_computed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "a.png", 0, 5, 9000)
    save(here / "b.png", 0)
    assert enlarge("a.png", "b.png", "-o", "out", "--format", "webp") == 1
    assert "a: 18000x10 pixels are more than webp can hold (16383 a side)" in capsys.readouterr().err
    assert enlarge("b.png", "-o", "far", "--scale", "9") == 1
    assert "more than two passes of a model for x2" in capsys.readouterr().err
    with pytest.raises(SizeError, match="is not of the form 3840x2160"):
        enlarge("b.png", "--size", "large")
    with pytest.raises(ValueError, match="--size is given with --scale"):
        enlarge("b.png", "--size", "10x10", "--scale", "2")
    with pytest.raises(ValueError, match="quality: 0 is outside 1 to 100"):
        enlarge("b.png", "--quality", "0")


def test_small_photographs_of_one_size_share_a_batch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Copying.enlarge

    def watching(self: Copying, batch: Batch, sampler: Sampler | None) -> Tensor:
        sizes.append(len(batch["key"]))
        return plain(self, batch, sampler)

    monkeypatch.setattr(Copying, "enlarge", watching)
    for index in range(3):
        save(here / "in" / f"{index}.png", index)
    save(here / "in" / "large.png", 3, 40, 300)
    assert enlarge("in", "-o", "out") == 0
    assert sorted(sizes) == [1, 1, 3], "two parts of the large one, and the small ones at once"
    for index in range(3):
        source = np.asarray(Image.open(here / "in" / f"{index}.png"))
        made = np.asarray(Image.open(here / "out" / f"{index}.png"))
        assert np.array_equal(made, source.repeat(2, axis=0).repeat(2, axis=1))


def test_before_it_starts_it_says_what_it_will_take(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(here / "a.png", 0, 600, 900)
    assert enlarge("a.png", "-o", "x.png") == 0
    line = next(text for text in caplog.text.splitlines() if "megapixels" in text)
    assert "1 photograph, 0.54 megapixels to 2.16: about " in line and "GB of memory at most" in line


def test_an_estimate_adds_up() -> None:
    plan = Plan(images=2, before=3_000_000, after=48_000_000, work=60_000_000, memory=2**31)
    assert estimate(plan, Timing(seconds=1e-5, memory=2**30)) == (
        "2 photographs, 3 megapixels to 48: about 10 min 0 s, 3.0 GB of memory at most"
    )
    assert [duration(seconds) for seconds in (0.2, 59, 61, 7260)] == ["1 s", "59 s", "1 min 1 s", "2 h 1 min"]


def test_both_names_of_the_program_know_it_and_the_exit_code_is_the_shells(here: Path) -> None:
    save(here / "a.png", 0)
    root = str(Path(__file__).resolve().parents[3])
    for name, source, code in (("lightning", "a.png", 0), ("diffsr", "none.png", 1)):
        script = Path(sys.executable).with_name(name)
        typed = [str(script), "enlarge", source, "--ckpt", "copy.ckpt", "-o", f"{name}.png", "--device", "cpu"]
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(typed, capture_output=True, text=True, env=environment)
        assert done.returncode == code and "Traceback" not in done.stderr
    assert size(here / "lightning.png") == (64, 48) and not (here / "diffsr.png").exists()


def test_weights_that_are_not_there_are_one_error(here: Path) -> None:
    save(here / "a.png", 0)
    with pytest.raises(ValueError, match="nothere"):
        main(["a.png", "--weights", "nothere.ckpt"])
    with pytest.raises(ValueError, match="Copying does not sample"):
        enlarge("a.png", "--steps", "3")


def test_where_the_output_is_no_terminal_lines_say_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("lightning_modules.enlarging.progress.perf_counter", lambda: now[0])
    with Bar(1000).open() as bar:
        bar.show("a[1].png")
        for _ in range(4):
            now[0] += 20
            bar.advance(200)
    assert capsys.readouterr().err.splitlines() == ["40%, a[1].png, 1 min 0 s left", "80%, a[1].png, 20 s left"]


def test_no_weights_and_no_packaged_model_says_to_give_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.setattr("lightning_modules.enlarging.command.is_name", lambda name: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"real-x4.*no --weights is given.*give a checkpoint or"):
        main(["photo.png"])
