import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure, TotalVariation

import lightning_modules.skipping.reward as reward_module
from lightning_modules.skipping.reward import LPIPS, PSNRY, MetricTerm, Reward, Term


def pictures() -> tuple[Tensor, Tensor]:
    """Three smooth pictures in [-1, 1] and worse and worse copies of them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 6, 6, generator=generator) * 1.6 - 0.8
    hr = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    noise = torch.randn(3, 3, 32, 32, generator=generator)
    return hr + noise * torch.tensor([0.01, 0.05, 0.2]).view(-1, 1, 1, 1), hr


TERMS: dict[str, Callable[[], Term]] = {
    "psnry": lambda: PSNRY(1.0),
    "psnr": lambda: MetricTerm(PeakSignalNoiseRatio(data_range=1.0)),
    "ssim": lambda: MetricTerm(StructuralSimilarityIndexMeasure(data_range=1.0)),
    "error": lambda: MetricTerm(MeanAbsoluteError()),
    "inverse error": lambda: MetricTerm(MeanAbsoluteError(), inverse=True),
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
    psnr, error = PSNRY(2.0), MetricTerm(MeanAbsoluteError(), weight=10.0)
    reward = Reward([psnr, error], price=0.5)
    measured = reward.measure(sr, hr)
    quality = reward.quality(measured)
    torch.testing.assert_close(quality, 2 * measured["psnry"] - 10 * measured["meanabsoluteerror"])
    evaluations, all_run = torch.tensor([10, 12, 19]), torch.tensor([1.0, 2.0, 3.0])
    paid = reward(quality, all_run=all_run, evaluations=evaluations)
    torch.testing.assert_close(paid, quality - all_run - 0.5 * evaluations)
    absolute = Reward([psnr, error], price=0.5, relative=False)(quality, all_run=all_run, evaluations=evaluations)
    torch.testing.assert_close(absolute, quality - 0.5 * evaluations)


def test_what_an_8_bit_file_cannot_hold_is_not_paid() -> None:
    hr = torch.zeros(1, 3, 16, 16)
    reward = Reward([MetricTerm(MeanAbsoluteError())])
    assert reward.measure(hr + 1e-3, hr)["meanabsoluteerror"] == 0
    assert reward.measure(hr + 5, hr + 1)["meanabsoluteerror"] == 0


def test_psnr_on_y_is_that_of_the_field() -> None:
    sr, hr = pictures()
    eight = [((image.clamp(-1, 1) + 1) * 127.5).round() / 255 for image in (sr, hr)]
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
    error = ((eight[0] - eight[1]) * weights).sum(1).square().mean(dim=(1, 2))
    torch.testing.assert_close(Reward([PSNRY(1.0)]).measure(sr, hr)["psnry"], -10 * error.log10())


def test_a_metric_without_reference_sees_the_result_alone() -> None:
    class Brightness(Metric):
        higher_is_better = True

        def update(self, image: Tensor) -> None:
            self.value = image.mean()

        def compute(self) -> Tensor:
            return self.value

    sr, hr = pictures()
    measured = Reward([MetricTerm(Brightness(), reference=False)]).measure(sr, hr)
    torch.testing.assert_close(measured["brightness"], (sr.mean(dim=(1, 2, 3)) + 1) / 2, rtol=0, atol=1e-2)


def test_a_metric_that_names_no_direction_is_refused() -> None:
    class Undecided(TotalVariation):
        higher_is_better = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Undecided does not say whether more is better"):
        MetricTerm(Undecided())


def test_weights_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="weight must be positive"):
        PSNRY(-1.0)
    with pytest.raises(ValueError, match="different names, got psnry, psnry"):
        Reward([PSNRY(1.0), PSNRY(2.0)])
    with pytest.raises(ValueError, match="got none"):
        Reward([])


def test_absent_lpips_names_the_reward_that_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match=r"LPIPS needs torchvision.*configs/reward/weight_free\.yaml"):
        LPIPS(100.0)


def test_lpips_is_measured_in_its_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    class Signed(Metric):
        def update(self, sr: Tensor, hr: Tensor) -> None:
            self.scores = (sr - hr).abs().mean(dim=(1, 2, 3), keepdim=True)

        def compute(self) -> Tensor:
            return self.scores

    monkeypatch.setattr(reward_module, "lpips", lambda otherwise: Signed())
    sr, hr = torch.full((2, 3, 16, 16), -1.0), torch.full((2, 3, 16, 16), 1.0)
    reward = Reward([LPIPS(3.0)])
    measured = reward.measure(sr, hr)
    assert measured["lpips"].tolist() == [2.0, 2.0]
    assert reward.quality(measured).tolist() == [-6.0, -6.0]
