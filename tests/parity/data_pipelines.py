"""The published pipelines from an 8-bit image to what the network is shown."""

from collections.abc import Iterator

from torch import Tensor

from datamodules.degradations.bicubic import Bicubic, pillow_bicubic
from datamodules.degradations.enlarge import enlarge
from datamodules.degradations.levels import from_uint8, to_uint8
from tests.parity.harness import Check, Comparison, Fixture


def planes(image: Tensor) -> Tensor:
    """`[H,W,3]` to `[1,3,H,W]`."""
    return image.permute(2, 0, 1)[None]


def srdiff(fixture: Fixture) -> Iterator[Comparison]:
    scale = fixture.config["sr_scale"]
    hr = from_uint8(planes(fixture.inputs["hr_uint8"]))
    lr = Bicubic(scale, rounding="each_pass")(hr, keys=[fixture.name], epoch=0, seed=0)
    up = enlarge(lr.double(), scale=scale, kernel="matlab_256")
    yield Comparison("lr_uint8", to_uint8(lr), planes(fixture.outputs["lr_uint8"]))
    yield Comparison("lr_up_float64", up, planes(fixture.outputs["lr_up_float64"]), atol=1e-12)
    for name, image in (("img_hr", hr), ("img_lr", lr), ("img_lr_up", up)):
        yield Comparison(name, image[0] * 2 - 1, fixture.outputs[name], atol=1e-6)


def sr3(fixture: Fixture) -> Iterator[Comparison]:
    low, high = fixture.config["l_resolution"], fixture.config["r_resolution"]
    source = planes(fixture.inputs["src_uint8"])
    yield Comparison("hr_uint8", pillow_bicubic(source, size=(high, high)), planes(fixture.outputs["hr_uint8"]))
    lr = pillow_bicubic(source, size=(low, low))
    yield Comparison("lr_uint8", lr, planes(fixture.outputs["lr_uint8"]))
    up = enlarge(from_uint8(lr), scale=high // low, kernel="pillow")
    yield Comparison("sr_uint8", to_uint8(up), planes(fixture.outputs["sr_uint8"]))


CHECKS: dict[str, Check] = {"srdiff_data_pipeline": srdiff, "sr3_data_pipeline": sr3}
