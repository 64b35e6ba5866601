"""The learned no-reference scores of the papers' tables, as pyiqa computes them; its licence is non-commercial."""

from torch import nn

from lightning_modules.metrics.library import LibraryScore
from lightning_modules.weight_files import WeightFile

URL = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
CLIP = "https://openaipublic.azureedge.net/clip/models"
CLIP_FILES = {  # by their digest, which is part of the address
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
}
# Files of each variant, the main one first. A hash in a file's name is the beginning of its sha256.
VARIANTS: dict[str, tuple[str, ...]] = {
    "musiq": ("musiq_koniq_ckpt-e95806b9.pth",),
    "musiq-ava": ("musiq_ava_ckpt-e8d3f067.pth",),
    "musiq-paq2piq": ("musiq_paq2piq_ckpt-364c0c84.pth",),
    "musiq-spaq": ("musiq_spaq_ckpt-358bb6af.pth",),
    "maniqa": ("ckpt_koniq10k.pt",),
    "maniqa-kadid": ("ckpt_kadid10k.pt",),
    "maniqa-pipal": ("MANIQA_PIPAL-ae6d356b.pth",),
    "clipiqa": ("RN50.pt",),
    "clipiqa+": ("CLIP-IQA+_learned_prompts-603f3273.pth", "RN50.pt"),
    "topiq_nr": ("cfanet_nr_koniq_res50-9a73138b.pth",),
    "topiq_nr-flive": ("cfanet_nr_flive_res50-ded1c74e.pth",),
    "topiq_nr-spaq": ("cfanet_nr_spaq_res50-a7f799ac.pth",),
    "liqe": ("liqe_koniq.pt", "ViT-B-32.pt"),
    "liqe_mix": ("liqe_mix.pt", "ViT-B-32.pt"),
}


class PyIQA(LibraryScore):
    """A no-reference score of pyiqa under its exact name there: `maniqa` is another network than `maniqa-pipal`.

    pyiqa and several of the weights may not be used commercially (PolyForm Noncommercial 1.0.0). MANIQA also has timm
    read a vision transformer from the hub or its cache.

    Args:
        variant: A key of `VARIANTS`.
        weights: File of the main weights; by default found or downloaded, see `weights.obtain`.
        optional: See `Loadable`.

    Raises:
        ValueError: there is no such variant.
    """

    higher_is_better = True
    packages = ("pyiqa",)
    extra = "pyiqa"

    def __init__(self, variant: str, weights: str | None = None, *, optional: bool = False) -> None:
        super().__init__(weights, optional=optional)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant}")
        self.variant = self.name = variant
        self.smallest = 32
        self.definition = f"pyiqa's {variant}"
        self.needed = {f"{'clip' if name in CLIP_FILES else 'pyiqa'}/{name}": _file(name) for name in VARIANTS[variant]}

    def build(self) -> nn.Module:
        """See `LibraryScore.build`."""
        import pyiqa

        # TOPIQ's own weights hold its backbone, which would otherwise be downloaded for nothing.
        options = {"backbone_pretrain": False} if self.variant.startswith("topiq") else {}
        metric: nn.Module = pyiqa.create_metric(self.variant, device="cpu", **options)
        return metric


def _file(name: str) -> WeightFile:
    if name in CLIP_FILES:
        return WeightFile(name, f"{CLIP}/{CLIP_FILES[name]}/{name}", CLIP_FILES[name])
    _, dash, ending = name.rpartition("-")
    return WeightFile(name, f"{URL}/{name}", ending.partition(".")[0] if dash else "")
