"""`lightning compare`: the table, its statistics, its pictures, and what is refused."""

import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap as reference

from lightning_modules.evaluation.compare import main, named_results, write_report
from lightning_modules.evaluation.comparison import Comparison, compare
from lightning_modules.evaluation.figures import panels
from lightning_modules.evaluation.results import NAME, ResultsError
from lightning_modules.evaluation.tables import differences_table, latex, markdown, scores_table
from tests.lightning_modules.evaluation.made_up import numbers, pictures, results_file

IMAGES = 20


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Arguments for three methods with two seeds each."""
    listed = []
    for place, (name, quality) in enumerate((("A", 28.0), ("B_2", 29.5), ("C", 29.0))):
        for seed in (0, 1):
            values = {
                "psnr_y": numbers(seed + 10 * place, IMAGES, quality + 0.1 * seed, 0.5),
                "lpips": numbers(seed + 10 * place + 50, IMAGES, 40 - quality, 0.1),
            }
            folder = tmp_path / f"{name}-{seed}"
            images = pictures(folder, list(values["psnr_y"])[:3], int(quality * 2))
            results_file(folder, values, name=name, seed=seed, pictures=images)
            listed.append(f"{name}={folder}")
    return listed


def compared(listed: list[str], scores: list[str] | None = None, against: str | None = None) -> Comparison:
    return compare([named_results(text) for text in listed], scores, against)


def test_rows_are_means_over_seeds_with_their_deviation(three: list[str]) -> None:
    comparison = compared(three)
    assert [method.label for method in comparison.methods] == ["bicubic", "A", "B_2", "C"]
    method = comparison.methods[2]
    means = [named_results(text)[1].mean("psnr_y") for text in three[2:4]]
    assert method.mean("psnr_y") == pytest.approx(fmean(means))
    assert method.deviation("psnr_y") == pytest.approx(stdev(means))
    written = markdown(scores_table(comparison))
    assert f"**{fmean(means):.3f} ± {stdev(means):.4f}**" in written
    assert re.search(r"\| C \| <u>29\.\d+ ± \d\.\d+</u> \|", written)
    assert re.search(r"\| B_2 .*\| 2 \| 10 \| 0\.5 \| 2\.5 \| 3 \|", written)


def test_the_best_is_bold_and_the_second_underlined_whatever_the_direction(three: list[str]) -> None:
    table = scores_table(compared(three))
    assert table.head[1:3] == ["psnr_y ↑", "lpips ↓"]
    for column, sign in ((0, -1), (1, 1)):
        order = sorted(table.rows, key=lambda row: sign * float(row[1][column].text.split(" ")[0]))
        assert [cells[column].rank for _, cells in order] == [1, 2, 0, 0]


def test_what_is_printed_alike_is_ranked_alike(tmp_path: Path) -> None:
    listed = []
    for name, value in (("A", 30.0), ("B", 30.0001), ("C", 29.0)):
        results_file(tmp_path / name, {"psnr_y": {"x": value, "y": value}}, name=name)
        listed.append(f"{name}={tmp_path / name}")
    ranks = {name: cells[0].rank for name, cells in scores_table(compared(listed)).rows}
    assert ranks == {"bicubic": 2, "A": 1, "B": 1, "C": 2}


def test_differences_have_the_interval_of_a_paired_bootstrap(three: list[str]) -> None:
    comparison = compared(three, against="A")
    found = comparison.differences["C", "psnr_y"]
    a, c = (next(m for m in comparison.methods if m.label == label).values("psnr_y") for label in ("A", "C"))
    differences = np.array([c[image] - a[image] for image in a])
    expected = reference((differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert found.mean == pytest.approx(differences.mean())
    width = found.high - found.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.05 * width)
    assert found.p < 0.001
    table = differences_table(comparison)
    assert table is not None and table.head[0] == "minus A"
    assert {name for name, _ in table.rows} == {"bicubic", "B_2", "C"}


def test_no_difference_has_a_large_p(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 50)
    noise -= noise.mean()
    results_file(tmp_path / "a", {"psnr_y": {str(i): 30.0 for i in range(50)}})
    results_file(tmp_path / "b", {"psnr_y": {str(i): 30.0 + noise[i] for i in range(50)}})
    found = compared([f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]).differences["b", "psnr_y"]
    assert found.low < 0 < found.high and found.p > 0.8


def test_scores_of_sets_and_infinite_values_stand_without_an_interval(tmp_path: Path) -> None:
    infinite = float("inf")
    means = {"psnr_y": {"model": None, "bicubic": None}}
    results_file(tmp_path / "a", {"psnr_y": {"x": 30.0, "y": infinite}})
    results_file(tmp_path / "b", {"psnr_y": {"x": 31.0, "y": 29.0}})
    results_file(tmp_path / "all", {"psnr_y": {"x": infinite, "y": infinite}}, means=means)
    comparison = compared([f"{name}={tmp_path / name}" for name in ("a", "b", "all")])
    assert "| all | **∞** |" in markdown(scores_table(comparison))
    table = differences_table(comparison)
    assert table is not None
    texts = {name: cells[0].text for name, cells in table.rows}
    assert texts["b"].startswith("+1.000 [1.000, 1.000]") and texts["all"] == "-"

    for name in ("c", "d"):
        content: dict[str, Any] = {"means": {"fid": {"model": 3.5, "bicubic": 9.0}}}
        content["rows"] = []
        results_file(tmp_path / name, {"fid": {"x": 1.0}}, **content)
    of_sets = compared([f"c={tmp_path / 'c'}", f"d={tmp_path / 'd'}"])
    assert differences_table(of_sets) is None and "3.500" in markdown(scores_table(of_sets))


def test_latex_is_escaped(three: list[str]) -> None:
    written = latex(scores_table(compared(three)))
    assert r"B\_2 & \textbf{" in written and r"psnr\_y $\uparrow$" in written and r"$\pm$" in written
    assert written.count("{") == written.count("}")
    assert not re.search(r"(?<!\\)[_%#]", written)


def test_one_command_writes_every_file(three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*three, "--out", str(tmp_path / "out"), "--images", "2"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"compare.md", "compare.tex", "compare.html"} | {
        f"{figure}.{suffix}" for figure in ("crops", "quality_against_time") for suffix in ("png", "pdf")
    }
    out = capsys.readouterr().out
    assert "| B_2 | **" in out
    written = (tmp_path / "out" / "compare.md").read_text()
    assert "20 images; protocol made-up@1; border 4" in written and "![crops](crops.png)" in written


def test_the_page_needs_no_other_file(three: list[str], tmp_path: Path) -> None:
    write_report(compared(three), tmp_path / "out", 2)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert not re.search(r"https?://|<link|<script src|url\(", page)
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}
    assert page.count('<option value="') == 2
    assert '<td class="rank1">' in page


def test_crops_are_where_methods_differ(three: list[str]) -> None:
    comparison = compared(three)
    shown = panels(comparison, 2)
    assert len(shown) == 2
    for panel in shown:
        assert list(panel.layers) == ["bicubic", "A", "B_2", "C", "HR"]
        top, left, side = panel.box
        # The shaded corner is 56 to 88 in both directions; the box of 64 holds all of it.
        assert top <= 56 and left <= 56 and top + side >= 88 and left + side >= 88


def test_a_file_that_is_cut_off_is_named(three: list[str], tmp_path: Path) -> None:
    path = tmp_path / "A-0" / NAME
    path.write_text(path.read_text()[:-200])
    with pytest.raises(ResultsError, match=r"A-0/results\.json: is cut off or no results file .*; measure it again"):
        compared(three)
    path.write_text("{}")
    with pytest.raises(ResultsError, match=r"no results file of this version"):
        compared(three)
    path.write_text('{"format": 1, "rows": []}')
    with pytest.raises(ResultsError, match=r"lacks definitions, means, data"):
        compared(three)
    path.unlink()
    with pytest.raises(ResultsError, match=r"A-0/results\.json: no such results file"):
        compared(three)


VALUES = {"psnr_y": {"x": 30.0, "y": 31.0}}


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        (VALUES, {"protocol": "other@2"}, r"different protocols .*made-up@1 \(.*other@2 \("),
        (VALUES, {"protocol": None}, r"different protocols .*no protocol \("),
        ({"psnr_y": {"x": 30.0, "z": 31.0}}, {}, r"only one of them has y, z"),
        (VALUES, {"data": {"hr_sha256": "other"}}, r"the same names but other pixels"),
        (VALUES, {"measured": {"border": 0, "mean": "of the values of single images"}}, r"border 4, .* border 0"),
        ({"psnr_y": {"x": 30.0, "y": float("nan")}}, {"name": "N"}, r"second/results\.json: y: psnr_y is NaN"),
        (VALUES, {}, r"are the same run: same checkpoint, same seed"),
        (
            VALUES,
            {"seed": 1, "method": {"name": "B", "sampler": "ddim-10", "config_sha256": "d"}},
            r"both called 'B, ddim-10', but their methods are configured differently: name them apart, A=FILE B=FILE",
        ),
        (
            VALUES,
            {"seed": 1, "definitions": {"psnr_y": {"definition": "other", "better": "higher", "weights": {}}}},
            r"psnr_y is defined differently in .*first.* and in .*second",
        ),
    ],
)
def test_what_cannot_stand_in_one_table_is_refused(
    tmp_path: Path, values: dict[str, dict[str, float]], changes: dict[str, Any], said: str
) -> None:
    first = results_file(tmp_path / "first", VALUES)
    second = results_file(tmp_path / "second", values, **changes)
    with pytest.raises(ResultsError, match=said):
        comparison = compared([str(first.path), str(second.path)])
        markdown(scores_table(comparison))


def test_named_alike_they_are_seeds(tmp_path: Path) -> None:
    method = {"name": "B", "sampler": "ddim-10", "config_sha256": "d"}
    first = results_file(tmp_path / "first", VALUES)
    second = results_file(tmp_path / "second", VALUES, seed=1, method=method)
    comparison = compared([f"mine={first.path}", f"mine={second.path}"])
    assert [len(row.seeds) for row in comparison.methods if row.label == "mine"] == [2]


def test_scores_are_chosen_and_missing_ones_said(tmp_path: Path) -> None:
    both = {**VALUES, "lpips": {"x": 0.2, "y": 0.3}}
    first = results_file(tmp_path / "first", both)
    second = results_file(tmp_path / "second", VALUES, seed=1)
    listed = [f"a={first.path}", f"b={second.path}"]
    comparison = compared(listed)
    assert comparison.scores == ["psnr_y"]
    assert comparison.notes == [f"lpips is left out: not measured in {second.path}"]
    with pytest.raises(ResultsError, match=r"lpips: not measured in .*second"):
        compared(listed, ["lpips"])
    with pytest.raises(ResultsError, match=r"--against z: no such row; there are bicubic, a, b"):
        compared(listed, against="z")


def test_readers_are_told_of_other_inputs_and_devices(tmp_path: Path) -> None:
    first = results_file(tmp_path / "first", VALUES)
    data = {**first.content["data"], "lr_sha256": "other"}
    second = results_file(tmp_path / "second", VALUES, data=data, run={"seed": 0, "device": "GPU"}, name="C")
    comparison = compared([str(first.path), str(second.path)])
    assert [note.split(":")[0].split(" (")[0] for note in comparison.notes] == [
        "the methods were given low-resolution images of different pixels",
        "times were taken on different devices",
    ]
