"""SRDiff's two networks: kinds `srdiff_rrdb` and `srdiff_unet`."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.unet_srdiff import SRDiffUNet
from tests.parity.harness import Check, Comparison, Fixture


def network_output(what: str, actual: Tensor, expected: Tensor) -> Comparison:
    """Networks must agree to 1e-5 of the largest output, or of 1."""
    return Comparison(what, actual, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


def check_rrdb(fixture: Fixture) -> Iterator[Comparison]:
    """The features and the image."""
    config = fixture.config
    network = RRDBNet(config["sr_scale"], config["nf"], config["nb"], config.get("gc")).eval()
    network.load_state_dict(fixture.weights)
    lr = fixture.inputs["img_lr"]
    yield network_output("feas", torch.stack(network.features(lr)), fixture.outputs["feas"])
    yield network_output("rrdb_out", network(lr), fixture.outputs["rrdb_out"])


def check_unet(fixture: Fixture) -> Iterator[Comparison]:
    """The noise, from the encoder's whole list of features."""
    config, inputs = fixture.config, fixture.inputs
    network = SRDiffUNet(
        config["sr_scale"],
        config["hidden_size"],
        config["unet_dim_mults"],
        config["rrdb_num_feat"],
        config["rrdb_num_block"],
        out_channels=config.get("out_dim", 3),
        attention=config.get("hparams", {}).get("use_attn", False),
        up_input=config.get("hparams", {}).get("up_input", False),
    ).eval()
    network.load_state_dict(fixture.weights)
    condition = {"features": network.project(list(inputs["cond_feas"]))}
    if network.up_proj is not None:
        condition["up"] = inputs["img_lr_up"]
    noise = network(inputs["x_t"], inputs["t"], **condition)
    yield network_output("noise_pred", noise, fixture.outputs["noise_pred"])


CHECKS: dict[str, Check] = {"srdiff_rrdb": check_rrdb, "srdiff_unet": check_unet}
