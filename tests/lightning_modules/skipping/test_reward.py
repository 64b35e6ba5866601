from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure, TotalVariation

from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.metrics.lr_consistency import LRConsistency, lr_psnr
from lightning_modules.metrics.niqe import NIQE
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.score import FullReferenceScore
from lightning_modules.metrics.ssim import SSIM
from lightning_modules.skipping.reward import Reward, Term
from lightning_modules.weight_files import WeightsError
from tests.lightning_modules.metrics.test_lpips import random_weights


def pictures() -> tuple[Tensor, Tensor]:
    """Three smooth pictures in [-1, 1] and worse and worse copies of them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 6, 6, generator=generator) * 1.6 - 0.8
    hr = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    noise = torch.randn(3, 3, 32, 32, generator=generator)
    return hr + noise * torch.tensor([0.01, 0.05, 0.2]).view(-1, 1, 1, 1), hr


TERMS: dict[str, Callable[[], Term]] = {
    "psnr_y": lambda: Term(PSNR()),
    "ssim_rgb": lambda: Term(SSIM("rgb")),
    "psnr": lambda: Term(PeakSignalNoiseRatio(data_range=1.0)),
    "ssim": lambda: Term(StructuralSimilarityIndexMeasure(data_range=1.0)),
    "error": lambda: Term(MeanAbsoluteError()),
    "inverse error": lambda: Term(MeanAbsoluteError(), inverse=True),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_worse_image_is_paid_less_whatever_the_metric(name: str) -> None:
    sr, hr = pictures()
    reward = Reward([TERMS[name]()])
    quality = reward.quality(reward.measure(sr, hr))
    assert quality.shape == (3,)
    assert quality[0] > quality[1] > quality[2]


@pytest.mark.parametrize("name", TERMS)
def test_each_image_is_measured_by_itself(name: str) -> None:
    sr, hr = pictures()
    reward = Reward([TERMS[name]()])
    together = reward.quality(reward.measure(sr, hr))
    alone = [reward.quality(reward.measure(sr[i : i + 1], hr[i : i + 1])) for i in (2, 0, 1)]
    torch.testing.assert_close(together, torch.cat([alone[1], alone[2], alone[0]]))


def test_terms_are_weighted_and_evaluations_cost() -> None:
    sr, hr = pictures()
    psnr, error = Term(PSNR(), weight=2.0), Term(MeanAbsoluteError(), weight=10.0)
    reward = Reward([psnr, error], price=0.5)
    measured = reward.measure(sr, hr)
    quality = reward.quality(measured)
    torch.testing.assert_close(quality, 2 * measured["psnr_y"] - 10 * measured["meanabsoluteerror"])
    evaluations, all_run = torch.tensor([10, 12, 19]), torch.tensor([1.0, 2.0, 3.0])
    paid = reward(quality, all_run=all_run, evaluations=evaluations)
    torch.testing.assert_close(paid, quality - all_run - 0.5 * evaluations)
    absolute = Reward([psnr, error], price=0.5, relative=False)(quality, all_run=all_run, evaluations=evaluations)
    torch.testing.assert_close(absolute, quality - 0.5 * evaluations)


def test_what_an_8_bit_file_cannot_hold_is_not_paid() -> None:
    hr = torch.zeros(1, 3, 16, 16)
    reward = Reward([Term(MeanAbsoluteError())])
    assert reward.measure(hr + 1e-3, hr)["meanabsoluteerror"] == 0
    assert reward.measure(hr + 5, hr + 1)["meanabsoluteerror"] == 0


def test_psnr_on_y_is_that_of_the_field() -> None:
    sr, hr = pictures()
    eight = [((image.clamp(-1, 1) + 1) * 127.5).round() / 255 for image in (sr, hr)]
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
    error = ((eight[0] - eight[1]) * weights).sum(1).square().mean(dim=(1, 2))
    torch.testing.assert_close(Reward([Term(PSNR())]).measure(sr, hr)["psnr_y"], -10 * error.log10())


def test_a_metric_without_reference_sees_the_result_alone() -> None:
    class Brightness(Metric):
        higher_is_better = True

        def update(self, image: Tensor) -> None:
            self.value = image.mean()

        def compute(self) -> Tensor:
            return self.value

    sr, hr = pictures()
    measured = Reward([Term(Brightness())]).measure(sr, hr)
    torch.testing.assert_close(measured["brightness"], (sr.mean(dim=(1, 2, 3)) + 1) / 2, rtol=0, atol=1e-2)


def test_a_metric_that_names_no_direction_is_refused() -> None:
    class Undecided(TotalVariation):
        higher_is_better = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Undecided does not say whether more is better"):
        Term(Undecided())


def test_weights_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="weight must be positive"):
        Term(PSNR(), weight=-1.0)
    with pytest.raises(ValueError, match="different names, got psnr_y, psnr_y"):
        Reward([Term(PSNR()), Term(PSNR(), weight=2.0)])
    with pytest.raises(ValueError, match="got none"):
        Reward([])


def test_absent_weights_name_the_reward_that_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    # A reward has no optional terms: what is left out would change it.
    reward = Reward([Term(LPIPS(optional=True), weight=100.0)])
    with pytest.raises(WeightsError, match=r"LPIPS .*needs the weights.*configs/reward/weight_free\.yaml"):
        reward.load()


def test_lpips_counts_against_the_image_with_its_weight(tmp_path: Path) -> None:
    score = LPIPS("alex", str(random_weights("alex", tmp_path / "alexnet.pth")))
    reward = Reward([Term(score, weight=3.0)])
    reward.load()
    sr, hr = (torch.nn.functional.interpolate(image, size=(64, 64)) for image in pictures())
    measured = reward.measure(sr, hr)
    assert list(measured) == ["lpips"] and (measured["lpips"] > 0).all()
    torch.testing.assert_close(reward.quality(measured), -3 * measured["lpips"])


def test_scores_see_whole_images_between_0_and_1() -> None:
    class Range(FullReferenceScore):
        name, higher_is_better, crops_border = "range", True, True

        def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
            assert sr.shape[-2:] == hr.shape[-2:] == (16, 16)
            return (hr - sr).flatten(1).amax(1)

    sr, hr = torch.full((2, 3, 16, 16), -1.0), torch.full((2, 3, 16, 16), 1.0)
    assert Reward([Term(Range())]).measure(sr, hr)["range"].tolist() == [1.0, 1.0]


def test_a_score_of_the_low_resolution_image_sees_it() -> None:
    sr, hr = pictures()
    reward, lr = Reward([Term(LRConsistency())]), avg_pool2d(hr, 4)
    eight = ((sr.clamp(-1, 1) + 1) * 127.5).round() / 255
    torch.testing.assert_close(reward.measure(sr, hr, lr)["lr_psnr"], lr_psnr(eight, (lr + 1) / 2))
    with pytest.raises(ValueError, match="lr_psnr compares with the low-resolution image, which is missing"):
        reward.measure(sr, hr)


def test_images_too_small_for_a_score_are_refused_instead_of_rewarded_with_nothing() -> None:
    sr, hr = pictures()
    with pytest.raises(ValueError, match=r"reward's niqe_block32 needs 64 pixels on each side, the images have 32x32"):
        Reward([Term(NIQE(block=32))]).measure(sr, hr)
