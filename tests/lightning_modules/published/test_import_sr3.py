"""SR3's published weights: taken over whole, and refused where the configuration differs."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.diffusion.parameterization import Epsilon
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Linear, Schedule
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.published.importing import import_weights
from lightning_modules.published.schedule_table import table
from lightning_modules.published.sr3 import adapt
from lightning_modules.sr3 import SR3

STEPS = 50
SIZES: dict[str, Any] = {"inner_channel": 8, "channel_mults": (1, 2), "attn_res": (8,), "res_blocks": 1}
SIZES |= {"norm_groups": 4, "image_size": 16}


def make_sr3(sizes: dict[str, Any] | None = None, schedule: Schedule | None = None, **arguments: Any) -> SR3:
    torch.manual_seed(0)
    network = SR3UNet(**{**SIZES, **(sizes or {})})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    defaults: dict[str, Any] = {
        "network": network,
        "process": VP(schedule or Linear(STEPS, 1e-4, 0.2), continuous=True),
        "parameterization": Epsilon("level"),
        "space": Pixels(),
        "sampler": Ancestral(4),
    }
    return SR3(**{**defaults, **arguments}).eval()


def published(model: SR3, **changes: Tensor) -> OrderedDict[str, Tensor]:
    """A state dict as the public code saves it: float32 rows of the schedule, then the network."""
    process = model.process
    assert isinstance(process, VP)
    rows = {name: row.float() for name, row in table(process.schedule).items()}
    network = {f"denoise_fn.{name}": value for name, value in model.network.state_dict().items()}
    return OrderedDict({**rows, **network, **changes})


@pytest.mark.parametrize("conditioning", ["level", "index"])
def test_published_weights_are_imported_whole(tmp_path: Path, conditioning: Any) -> None:
    arguments: dict[str, Any] = {"sizes": {"conditioning": conditioning}, "parameterization": Epsilon(conditioning)}
    source, target = make_sr3(**arguments), make_sr3(**arguments)
    for parameter in target.network.parameters():
        nn.init.zeros_(parameter)
    state = published(source)
    adapted = adapt(target, state)
    assert isinstance(source.process, VP)
    assert {f"denoise_fn.{name.removeprefix('network.')}" for name in adapted} | set(
        table(source.process.schedule)
    ) == set(state)
    torch.save(state, tmp_path / "I640000_E37_gen.pth")
    import_weights(target, tmp_path / "I640000_E37_gen.pth")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"schedule": Linear(STEPS, 1e-4, 0.1)}, "betas: the file has 50 values, 0.0001 to 0.1, the configured"),
        ({"schedule": Linear(40, 1e-4, 0.2)}, "betas: the file has 40 values"),
        ({"sizes": {"channel_mults": (1, 4)}}, r"size mismatch for network\.downs\.3"),
        ({"sizes": {"res_blocks": 2}}, r"the weights do not fit SR3 as configured: .*network\.ups\.1"),
        (
            {"sizes": {"conditioning": "index"}, "parameterization": Epsilon("index")},
            r"missing network\.downs\.1\.res_block\.noise_func",
        ),
    ],
)
def test_weights_of_another_configuration_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    path = tmp_path / "I1_E1_gen.pth"
    torch.save(published(make_sr3(**other)), path)
    with pytest.raises(CheckpointError, match=message) as raised:
        import_weights(make_sr3(), path)
    assert str(path) in str(raised.value)


def test_a_file_without_a_schedule_is_refused(tmp_path: Path) -> None:
    state = published(make_sr3())
    del state["alphas_cumprod"]
    torch.save(state, tmp_path / "gen.pth")
    with pytest.raises(CheckpointError, match=r"gen\.pth: alphas_cumprod: the file has no such row"):
        import_weights(make_sr3(), tmp_path / "gen.pth")


def test_a_process_without_a_schedule_is_refused(tmp_path: Path) -> None:
    torch.save(published(make_sr3()), tmp_path / "gen.pth")
    other = make_sr3()
    other.process = RelayProcess()
    with pytest.raises(CheckpointError, match=r"gen\.pth: .*the configured process, RelayProcess, has none"):
        import_weights(other, tmp_path / "gen.pth")
