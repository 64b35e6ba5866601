"""CLIP-IQA (Wang et al., arXiv:2207.12396) as torchmetrics computes it."""

from typing import Any, cast

from torch import nn

from lightning_modules.metrics.library import LibraryScore
from lightning_modules.metrics.score import TorchMetric


class CLIPIQA(LibraryScore):
    """How much more an image is a "Good photo." than a "Bad photo." to CLIP, in [0, 1].

    One pair of prompts, the paper's; pyiqa's `clipiqa` is the mean over five pairs, so the two are different scores.

    Args:
        model: `clip_iqa`, the paper's network, which the package piq downloads to its cache, or one of OpenAI's models
            on the hub that torchmetrics names, such as `openai/clip-vit-base-patch16`.
        optional: See `Loadable`.
    """

    higher_is_better = True
    smallest = 32
    extra = "clip_iqa"

    def __init__(self, model: str = "clip_iqa", *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.model = model
        self.packages = ("piq",) if model == "clip_iqa" else ("transformers",)
        self.name = "clip_iqa" if model == "clip_iqa" else f"clip_iqa_{model.rpartition('/')[2]}"
        self.definition = f"torchmetrics' CLIP-IQA, model {model}, prompt quality"

    def build(self) -> nn.Module:
        """See `LibraryScore.build`."""
        from torchmetrics.multimodal import CLIPImageQualityAssessment

        return TorchMetric(CLIPImageQualityAssessment(model_name_or_path=cast(Any, self.model), data_range=1.0))
