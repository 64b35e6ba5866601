"""Published weights of EDM's networks, which EDM and Relay Diffusion read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError
from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.parameterization import Preconditioned
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.space import Pixels
from lightning_modules.edm import EDM
from lightning_modules.networks.unet_adm import ADMUNet
from lightning_modules.published.importing import import_weights
from lightning_modules.relay import Relay

GOLDENS = Path(__file__).parents[2] / "goldens" / "rdm"


def make(kind: type[DiffusionModule], network: ADMUNet) -> DiffusionModule:
    return kind(
        network=network,
        process=EDMProcess() if kind is EDM else RelayProcess(),
        parameterization=Preconditioned(),
        space=Pixels(clip=False),
        sampler=EDMHeun(3) if kind is EDM else RelayHeun(10),
        condition_on="none",
    ).eval()


@pytest.mark.parametrize("kind", [EDM, Relay])
def test_published_weights_are_read_from_safetensors_alone(kind: type[DiffusionModule], tmp_path: Path) -> None:
    golden = load_file(GOLDENS / "rdm_network.safetensors")
    state = {key.removeprefix("weights/"): value for key, value in golden.items() if key.startswith("weights/")}
    save_file(state, tmp_path / "weights.safetensors")
    unet = ADMUNet(
        img_resolution=16,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(8,),
        channels_per_head=8,
        label_dim=4,
        augment_dim=9,
    )
    model = make(kind, unet)
    import_weights(model, tmp_path / "weights.safetensors")
    output = unet.eval()(golden["inputs/x"], golden["inputs/label"])
    assert torch.allclose(output, golden["outputs/output"], atol=1e-5)

    save_file({**state, "model.extra.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other.safetensors: .*unknown network.extra.weight"):
        import_weights(model, tmp_path / "other.safetensors")
    wider = {key: value * 2 if key.endswith("resample_filter") else value for key, value in state.items()}
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(CheckpointError, match="another filter than the 2x2 box"):
        import_weights(model, tmp_path / "wider.safetensors")
    torch.save({"ema": unet}, tmp_path / "pickled.pt")
    with pytest.raises(CheckpointError, match=r"pickled.pt: .*could execute code"):
        import_weights(model, tmp_path / "pickled.pt")
