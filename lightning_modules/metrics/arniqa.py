"""ARNIQA (Agnolucci et al., arXiv:2310.14918) as torchmetrics computes it."""

from typing import Literal

from torch import nn

from lightning_modules.metrics.library import LibraryScore
from lightning_modules.metrics.score import TorchMetric
from lightning_modules.weight_files import WeightFile

URL = "https://github.com/miccunifi/ARNIQA/releases/download/weights"
REGRESSORS = {
    "koniq10k": "af8f127aca38a8e1082e066b5ee93e533bf5f33aaf9c76b3c31526ef901919e1",
    "kadid10k": "4315bf471d52eb7d3e5de1e2ac8bb465f8eec10cd724103c7",
}


class ARNIQA(LibraryScore):
    """Quality in [0, 1] from features that tell distortions apart.

    Args:
        regressor: The set that the last layer was fitted on.
        weights: File of the encoder's weights, `ARNIQA.pth`; by default found or downloaded, see `weights.obtain`.
        optional: See `Loadable`.
    """

    higher_is_better = True
    smallest = 64
    packages = ("torchvision",)
    extra = "arniqa"

    def __init__(
        self,
        regressor: Literal["koniq10k", "kadid10k"] = "koniq10k",
        weights: str | None = None,
        *,
        optional: bool = False,
    ) -> None:
        super().__init__(weights, optional=optional)
        self.regressor = regressor
        self.name = "arniqa" if regressor == "koniq10k" else f"arniqa_{regressor}"
        self.definition = f"torchmetrics' ARNIQA, regressor {regressor}"
        last = f"regressor_{regressor}.pth"
        self.needed = {
            "checkpoints/ARNIQA.pth": WeightFile(
                "ARNIQA.pth",
                f"{URL}/ARNIQA.pth",
                "ad2022e59b1040d5bab24f9325c10d0215956a2061248a36c15edaec3e60fcd1",
            ),
            f"checkpoints/{last}": WeightFile(last, f"{URL}/{last}", REGRESSORS[regressor]),
        }

    def build(self) -> nn.Module:
        """See `LibraryScore.build`."""
        from torchmetrics.image.arniqa import ARNIQA as Published

        return TorchMetric(Published(regressor_dataset=self.regressor, normalize=True))
