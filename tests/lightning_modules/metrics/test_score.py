"""What scores have in common, and metrics of torchmetrics as scores."""

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.image import SpatialCorrelationCoefficient, TotalVariation, VisualInformationFidelity

from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.score import NoReferenceScore, TorchMetric, as_scores, names_of
from lightning_modules.metrics.ssim import SSIM
from tests.lightning_modules.metrics.photographs import pair


class Brightness(Metric):
    higher_is_better = True

    def update(self, image: Tensor) -> None:
        self.value = image.mean()

    def compute(self) -> Tensor:
        return self.value


def test_a_metric_scores_each_image_by_itself() -> None:
    sr, hr = pair()
    score = TorchMetric(MeanAbsoluteError())
    expected = (sr - hr).abs().mean(dim=(1, 2, 3)).float()
    torch.testing.assert_close(score(sr, hr), expected)
    torch.testing.assert_close(score(sr[1:], hr[1:]), expected[1:])
    assert (score.name, score.higher_is_better, score.reads_hr) == ("meanabsoluteerror", False, True)


@pytest.mark.parametrize("metric", [VisualInformationFidelity, SpatialCorrelationCoefficient])
def test_metrics_of_torchmetrics_are_scores_as_they_are(metric: type[Metric]) -> None:
    sr, hr = pair()
    expected = torch.stack([metric()(sr[i : i + 1].float(), hr[i : i + 1].float()) for i in range(2)])
    torch.testing.assert_close(TorchMetric(metric())(sr, hr), expected)


def test_a_metric_without_reference_sees_the_result_alone() -> None:
    sr, _ = pair()
    score = TorchMetric(Brightness(), name="light")
    torch.testing.assert_close(score(sr), sr.mean(dim=(1, 2, 3)).float())
    assert (score.name, score.reads_hr) == ("light", False)


def test_a_metric_that_names_no_direction_is_refused() -> None:
    class Undecided(TotalVariation):
        higher_is_better = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Undecided does not say whether more is better"):
        TorchMetric(Undecided())


def test_a_metric_of_several_numbers_is_refused() -> None:
    class Both(Brightness):
        def compute(self) -> Tensor:
            return torch.stack([self.value, self.value])

    with pytest.raises(ValueError, match="both gives something else than one number for an image"):
        TorchMetric(Both())(pair()[0])


@pytest.mark.parametrize("score", [PSNR(), TorchMetric(MeanAbsoluteError())])
def test_a_missing_target_is_named_by_the_score(score: PSNR | TorchMetric) -> None:
    with pytest.raises(ValueError, match=rf"^{score.name} compares with the target"):
        score(pair()[0])


def test_a_list_holds_scores_and_metrics_of_different_names() -> None:
    scores = as_scores([PSNR("y"), SSIM("rgb"), MeanAbsoluteError()])
    assert [name for score in scores for name in names_of(score)] == ["psnr_y", "ssim_rgb", "meanabsoluteerror"]
    with pytest.raises(ValueError, match="psnr_y: two scores have this name"):
        as_scores([PSNR("y"), PSNR("rgb"), PSNR("y")])


def test_scores_stay_in_evaluation_mode() -> None:
    class Dropped(NoReferenceScore):
        name, higher_is_better = "dropped", True

        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Dropout(0.5)

        def judge(self, image: Tensor) -> Tensor:
            return self.network(image).mean(dim=(1, 2, 3))

    score, image = Dropped(), torch.rand(1, 3, 8, 8)
    around = torch.nn.ModuleList([score]).train()
    torch.testing.assert_close(around[0](image), image.mean(dim=(1, 2, 3)))
