"""Students of one evaluation: what they learn, from whom, and what they leave in their checkpoints."""

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from datamodules.batch import Batch, make_batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from lightning_modules.config import CONFIGS, build, load_method
from lightning_modules.config_errors import ConfigError
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.parameterization import Epsilon, Noised
from lightning_modules.diffusion.randomness import StepDraws
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.diffusion.samplers import DDIM, Ancestral, DPMSolverPlusPlus, Sampler
from lightning_modules.diffusion.schedules import Cosine, Linear
from lightning_modules.diffusion.vp import VP
from lightning_modules.distill import Distill, LimitedEpsilon, OneStep, Teacher, fresh
from lightning_modules.running.experiment import run
from lightning_modules.skipping.policy_sampler import PolicySampler
from tests.tiny.experiments import arguments

DIFFUSION = "lightning_modules.diffusion"
SIDE, SCALE = 32, 2


class Small(nn.Module):
    """A convolution of the state and the image, which knows the time; records what it is shown."""

    stride, conditioning = 2, None

    def __init__(self, image: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(6 if image else 3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor, image: Tensor | None = None) -> Tensor:
        self.shown.append(x.detach().clone())
        h = self.first(x if image is None else torch.cat([x, image], dim=1))
        out: Tensor = self.last(torch.tanh(h + 0.1 * label.view(-1, 1, 1, 1)))
        return out


def part(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def of(kind: type, **arguments: Any) -> dict[str, Any]:
    return part(f"{kind.__module__}.{kind.__qualname__}", **arguments)


def pixels(**arguments: Any) -> dict[str, Any]:
    return part(f"{DIFFUSION}.space.Pixels", **arguments)


LINEAR = part(f"{DIFFUSION}.schedules.Linear", steps=100, start=1e-3, end=0.2)
SRDIFF_UNET = part(
    "lightning_modules.networks.unet_srdiff.SRDiffUNet",
    channels=8,
    channel_mults=[1, 2],
    encoder_channels=8,
    encoder_blocks=2,
    scale=SCALE,
)
HOSTS: dict[str, tuple[dict[str, Any], Sampler]] = {
    "srdiff": (
        part(
            "lightning_modules.srdiff.SRDiff",
            encoder=part("lightning_modules.networks.rrdb.RRDBNet", nf=8, nb=2, gc=4, scale=SCALE),
            freeze_encoder=False,
            network=SRDIFF_UNET,
            process=part(f"{DIFFUSION}.vp.VP", schedule=part(f"{DIFFUSION}.schedules.Cosine", steps=20)),
            parameterization=part(f"{DIFFUSION}.parameterization.Epsilon", label="index"),
            space=part(f"{DIFFUSION}.space.Residual"),
            sampler=of(Ancestral, steps=20),
        ),
        DDIM(4),
    ),
    "sr3": (
        part(
            "lightning_modules.edm.EDM",  # SR3 by its parts: its class declares nothing but the type of its network
            network=of(Small),
            process=part(f"{DIFFUSION}.vp.VP", schedule=LINEAR, continuous=True),
            parameterization=part(f"{DIFFUSION}.parameterization.Epsilon", label="level"),
            space=pixels(),
            sampler=of(DPMSolverPlusPlus, steps=3),
        ),
        DPMSolverPlusPlus(3),
    ),
    "resshift": (
        part(
            "lightning_modules.resshift.ResShift",
            network=of(Small),
            process=part(f"{DIFFUSION}.residual_shift.ResidualShift", steps=15, min_noise_level=0.04),
            parameterization=part(f"{DIFFUSION}.parameterization.AnchorResidual", label="time", input_scale="pixel"),
            space=pixels(),
            sampler=of(Ancestral, steps=15),
        ),
        DDIM(15),
    ),
    "dossr": (
        part(
            "lightning_modules.dossr.DoSSR",
            network=of(Small),
            process=part(f"{DIFFUSION}.vp.DomainShift", schedule=LINEAR, shift_steps=50),
            parameterization=part(f"{DIFFUSION}.parameterization.ShiftedEpsilon", label="time"),
            space=pixels(clip=False),
            sampler=of(DoSMultistep, steps=5),
        ),
        DPMSolverPlusPlus(5),
    ),
    "edm": (
        part(
            "lightning_modules.edm.EDM",
            network=of(Small),
            process=part(f"{DIFFUSION}.edm.EDMProcess", sigma_max=20.0),
            parameterization=part(f"{DIFFUSION}.parameterization.Preconditioned"),
            space=pixels(clip=False),
            sampler=of(EDMHeun, steps=3),
        ),
        EDMHeun(3),
    ),
    "relay": (
        part(
            "lightning_modules.relay.Relay",
            network=of(Small, image=False),
            process=part(f"{DIFFUSION}.relay.RelayProcess", patch=SCALE),
            parameterization=part(f"{DIFFUSION}.parameterization.Preconditioned"),
            space=pixels(clip=False),
            sampler=of(RelayHeun, steps=9),
        ),
        RelayHeun(9, eta=0.0),
    ),
}
YODA = part(
    f"{DIFFUSION}.yoda.YODA",
    attention=part("lightning_modules.networks.attention_maps.Constant"),
    lower_bound=0.1,
    tile=8,
    halo=8,
    dense_above=1e9,
)


def teacher(folder: Path, name: str = "resshift", scale: int = SCALE, **changes: Any) -> str:
    """A teacher with weights of a seed, in a checkpoint."""
    config, _ = HOSTS[name]
    config = deepcopy({**config, "init_args": {**config["init_args"], **changes}})
    torch.manual_seed(1)
    model, path = build(deepcopy(config), name), folder / f"{name}.ckpt"
    write_checkpoint(model, {"model": config, "data": part("datamodules.folder.Folder", scale=scale)}, path)
    return str(path)


def images(count: int = 2, scale: int = SCALE) -> Batch:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(count, 3, SIDE, SIDE, generator=generator)
    lr = nn.functional.avg_pool2d(hr, scale)
    batch = make_batch(lr, [f"image {index}" for index in range(count)], scale=scale, kernel="nearest")
    return {**batch, "hr": hr * 2 - 1}


def with_attention(batch: Batch) -> Batch:
    """A map whose left half joins near the end and whose right half in the middle of a run."""
    attention = torch.full((len(batch["key"]), 1, SIDE, SIDE), 0.5)
    attention[..., : SIDE // 2] = 0.0
    return {**batch, "attention": attention}


class Stream(IterableDataset[Batch]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


def train(model: Distill, steps: int, folder: Path, batch: Batch | None = None) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, DataLoader(Stream(images() if batch is None else batch), batch_size=None))
    return trainer


def begun(path: str, sampler: Sampler | None, folder: Path, **options: Any) -> Distill:
    """A student with its teacher, and the teacher's weights."""
    model = Distill(path, sampler, **options)
    train(model, 0, folder)
    return model


def shown(model: DiffusionModule) -> list[Tensor]:
    assert isinstance(model.network, Small)
    return model.network.shown


def own_teacher(model: Distill) -> Teacher:
    assert model._taught_by is not None
    return model._taught_by


# What is learned.


def test_the_losses_are_sinsrs(tmp_path: Path) -> None:
    """By hand: ResShift's deterministic steps in their published coefficients, and the three squared errors."""
    clean = part(f"{DIFFUSION}.parameterization.Clean", label="time")
    model = begun(
        teacher(tmp_path, parameterization=clean, space=pixels(clip=False)),
        DDIM(5),
        tmp_path,
        distill_weight=0.5,
        inverse_weight=2.0,
        target_weight=3.0,
    )
    batch, student = images(), model.student
    with torch.no_grad():  # so that student and teacher differ
        for parameter in student.parameters():
            parameter.mul_(1.1)

    torch.manual_seed(3)
    losses = model.losses(batch)
    torch.autograd.backward(list(losses.values()))
    found = [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]
    student.zero_grad()

    torch.manual_seed(3)
    y, noise = batch["up"], fresh(StepDraws(), 2, torch.device("cpu"))(batch["up"])
    process: Any = student.process
    entries = [15, 12, 9, 6, 3]
    shift = [float(process.tables["shift"][entry]) for entry in (*entries, 0)]
    x = x_t = y + process.kappa * shift[0] ** 0.5 * noise

    def network(method: DiffusionModule, x: Tensor, entry: int) -> Tensor:
        out: Tensor = method.network(x, torch.full((2,), entry / 15), image=y)
        return out

    with torch.no_grad():
        for entry, now, then in zip(entries, shift[:-1], shift[1:], strict=True):
            m = (then / now) ** 0.5
            j = then - (then * now) ** 0.5
            k = 1 - then + (then * now) ** 0.5 - m
            x = k * network(own_teacher(model).method, x, entry) + m * x + j * y
        of_target = network(student, batch["hr"], 3)
        start_of_target = y + process.kappa * shift[0] ** 0.5 * of_target

    expected = {
        "loss": 0.5 * (network(student, x_t, 15) - x).square().mean(),
        "inverse": 2.0 * (network(student, x, 3) - noise).square().mean(),
        "target": 3.0 * (network(student, start_of_target, 15) - batch["hr"]).square().mean(),
    }
    torch.testing.assert_close(losses, expected)
    torch.autograd.backward(list(expected.values()))
    wanted = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_term_without_weight_is_left_out(tmp_path: Path) -> None:
    model = begun(teacher(tmp_path), DDIM(5), tmp_path, inverse_weight=0.0, target_weight=0.0)
    assert model.losses(images()).keys() == {"loss"}


@pytest.mark.parametrize("name", HOSTS)
def test_every_method_has_a_student_of_one_evaluation(name: str, tmp_path: Path) -> None:
    path, sampler = teacher(tmp_path, name), HOSTS[name][1]
    model = Distill(path, sampler, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    torch.manual_seed(0)
    train(model, 3, tmp_path)
    before, after = load_method(path).state_dict(), model.student.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items() if key.startswith("network."))
    for key, value in before.items():
        assert key.startswith("network.") or torch.equal(value, after[key]), f"{key} was trained"

    calls: list[int] = []
    model.student.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    sr = model.eval().super_resolve(images())
    assert calls == [2]
    assert sr.isfinite().all() and sr.shape == (2, 3, SIDE, SIDE)
    assert model.protocol().startswith("one-step-of-")


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "srdiff"])
def test_student_and_teacher_start_from_the_same_state(name: str, tmp_path: Path) -> None:
    model = begun(teacher(tmp_path, name), HOSTS[name][1], tmp_path)
    model.losses(images())
    first = shown(own_teacher(model).method)[0]
    # The rounding of the noise is that of float32, and the levels of EDM reach 20.
    torch.testing.assert_close(shown(model.student)[0], first, rtol=1e-5, atol=1e-5)

    # What is trained is what samples.
    _, denoiser, randn, _ = model.student.prepare(images())
    noise = model.student.process.noise(denoiser.anchor, randn.fork())
    torch.testing.assert_close(model.student.sampler(denoiser, randn), denoiser.bound(model.answer(denoiser, noise)))


def test_a_student_learns_its_teachers_map(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = begun(
        teacher(tmp_path),
        DDIM(15),
        tmp_path,
        inverse_weight=0.0,
        target_weight=0.0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    )
    at_first = model.losses(images())["loss"].item()
    train(model, 60, tmp_path)
    assert model.losses(images())["loss"].item() < at_first / 2


def test_guidance_is_learned_and_not_repeated(tmp_path: Path) -> None:
    guidance = [part(f"{DIFFUSION}.guidance.SelfAttentionGuidance", mask="uniform", kernel=3, sigma=1.0)]
    model = begun(teacher(tmp_path, guidance=guidance), DDIM(5), tmp_path)
    assert own_teacher(model).method.guidance and not model.student.guidance
    own_teacher(model).answer(images(), fresh(StepDraws(), 2, torch.device("cpu")))
    assert len(shown(own_teacher(model).method)) == 10
    model.super_resolve(images())
    assert len(shown(model.student)) == 1


# Noise prediction.


def test_limited_noise_prediction_does_not_magnify_and_is_the_usual_one_where_that_does_not_either() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, anchor, noise = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(3))
    process, limited, usual = VP(Linear(100, 1e-3, 0.2)), LimitedEpsilon("level"), Epsilon("level")
    for time, same in ((0.1, True), (1.0, False)):
        t = torch.full((2,), time, dtype=torch.float64)
        x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
        noised = Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)
        target = limited.target(process, noised)
        torch.testing.assert_close(limited.x0(process, target, x_t=x_t, anchor=anchor, t=t), x0)
        one, other = (each.x0(process, noise + 0.1, x_t=x_t, anchor=anchor, t=t) for each in (limited, usual))
        assert torch.allclose(one, other, atol=1e-4) == same
        assert (limited.x0(process, target + 0.1, x_t=x_t, anchor=anchor, t=t) - x0).abs().max() < 0.1 + 1e-4


def test_a_student_of_noise_prediction_from_noise_alone_begins_near_the_enlarged_image(tmp_path: Path) -> None:
    model = Distill(teacher(tmp_path, "srdiff"), DDIM(4))
    assert isinstance(model.student.parameterization, LimitedEpsilon)
    assert isinstance(model.student.process, VP) and isinstance(model.student.process.schedule, Cosine)
    noise = torch.randn(2, 3, SIDE, SIDE)
    t, anchor = torch.ones(2, dtype=torch.float64), torch.zeros_like(noise)
    estimate = model.student.parameterization.x0(model.student.process, noise, x_t=noise, anchor=anchor, t=t)
    assert estimate.abs().max() < 0.05  # a network that finds the noise; Epsilon's estimate would be 0 / 0 here
    assert not isinstance(Distill(teacher(tmp_path, "dossr"), DDIM(4)).student.parameterization, LimitedEpsilon)


# YODA.


def test_a_student_under_yoda_evaluates_the_tiles_that_its_teacher_diffused_and_leaves_the_others(
    tmp_path: Path,
) -> None:
    # The last of 5 steps diffuses where attention + 0.1 >= 0.2: the right half.
    model, batch = begun(teacher(tmp_path, region=YODA), DDIM(5), tmp_path), with_attention(images())
    sr = model.super_resolve(batch)
    left, right = slice(0, SIDE // 2), slice(SIDE // 2, SIDE)
    torch.testing.assert_close(sr[..., left], batch["up"][..., left])
    assert (sr[..., right] - batch["up"][..., right]).abs().mean() > 0.05
    assert float(model.student.never_diffused.compute()) == 0.5
    assert sum(len(x) for x in shown(model.student)) == 2 * 2 * 4  # two columns of four tiles an image
    assert {x.shape[-1] for x in shown(model.student)} == {24}

    # The same pixels as in the teacher's own run.
    by_teacher = own_teacher(model).method.super_resolve(batch, DDIM(5))
    torch.testing.assert_close(by_teacher[..., left], batch["up"][..., left])
    assert float(own_teacher(model).method.never_diffused.compute()) == 0.5


def test_a_student_evaluates_all_where_its_teacher_diffuses_all_in_the_end(tmp_path: Path) -> None:
    for changes, steps in (({"whole_end": True}, 5), ({}, 15)):
        region = {**YODA, "init_args": {**YODA["init_args"], **changes}}
        model = Distill(teacher(tmp_path, region=region), DDIM(steps)).eval()
        model.super_resolve(with_attention(images()))
        assert float(model.student.never_diffused.compute()) == 0.0


@pytest.mark.parametrize(
    ("name", "sampler", "step", "evaluation"), [("resshift", DDIM(5), 4, 4), ("edm", EDMHeun(3), 1, 2)]
)
def test_under_yoda_the_start_determines_what_the_teacher_makes(
    name: str, sampler: Sampler, step: int, evaluation: int, tmp_path: Path
) -> None:
    model, batch = begun(teacher(tmp_path, name, region=YODA), sampler, tmp_path), with_attention(images())
    method, randn = own_teacher(model).method, fresh(StepDraws(), 2, torch.device("cpu"))
    one, two = (own_teacher(model).answer(batch, randn.fork())[0] for _ in range(2))
    assert torch.equal(one, two)

    # Waiting pixels hold the noise that the start held there.
    anchor, t = batch["up"], sampler.grid(method.process)[step].expand(2)
    noise = method.process.noise(anchor, randn.fork())
    waiting = method.process.diffuse(x0=anchor, anchor=anchor, t=t, noise=noise)
    read, left = method.parameterization.read(method.process, waiting, t)[0], slice(0, SIDE // 2)
    torch.testing.assert_close(shown(method)[evaluation][..., left], read[..., left], rtol=1e-5, atol=1e-5)


def test_pixels_that_never_diffuse_do_not_enter_the_losses(tmp_path: Path) -> None:
    model, batch = begun(teacher(tmp_path, region=YODA), DDIM(5), tmp_path), with_attention(images())
    hr = batch["hr"].clone()
    hr[..., : SIDE // 2 - 8] = 0.0  # beyond what the network sees of the right half
    other: Batch = {**batch, "hr": hr}
    values = []
    for each in (batch, other):
        torch.manual_seed(5)
        values.append(model.losses(each))
    torch.testing.assert_close(values[0], values[1])


# What is stored.


def test_nothing_of_the_teacher_is_the_students(tmp_path: Path) -> None:
    path = teacher(tmp_path)
    model = begun(path, DDIM(5), tmp_path)
    wanted = {f"student.{key}" for key in load_method(path).state_dict()}
    assert model.state_dict().keys() == wanted
    optimizer: Any = model.configure_optimizers()
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert trained == {id(each) for each in model.student.network.parameters()}
    method = own_teacher(model).method
    assert not any(each.requires_grad for each in method.parameters()) and not method.training
    assert not {id(each) for each in model.modules()} & {id(each) for each in method.modules()}
    assert not method.network.training and model.train().student.training


def test_parts_beside_the_network_stay_as_the_teacher_had_them_and_are_stored(tmp_path: Path) -> None:
    model = begun(teacher(tmp_path, "srdiff"), DDIM(4), tmp_path)
    assert not any(each.requires_grad for each in model.student.get_submodule("encoder").parameters())
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == model.state_dict().keys()
    assert any(key.startswith("student.encoder.") for key in checkpoint["state_dict"])


TINY = [*arguments(CONFIGS / "distill.yaml"), "--trainer.limit_val_batches", "0"]


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    monkeypatch.chdir(folder)
    run(["fit", *TINY, *options])
    return folder / "runs" / "distill" / "last" / "checkpoints" / "last.ckpt"


def test_a_run_goes_on_exactly_and_its_student_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    path = str(tmp_path / "teacher.ckpt")
    torch.save(read_checkpoint(Path(os.environ["DIFFSR_TINY"]) / "sr3_cosine_x4.ckpt"), path)
    given = ["--model.init_args.teacher", path]
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = read_checkpoint(fit(tmp_path / "whole", monkeypatch, *given, "--trainer.max_steps", "4"))
    last = fit(tmp_path / "parts", monkeypatch, *given, "--trainer.max_steps", "2")
    fit(tmp_path / "parts", monkeypatch, "--ckpt_path", "last", *given, "--trainer.max_steps", "4")
    parts = read_checkpoint(last)
    assert parts["global_step"] == 4
    for content in ("state_dict", "current_model_state"):
        assert whole[content].keys() == parts[content].keys()
        for name, value in whole[content].items():
            assert torch.equal(value, parts[content][name]), name
    assert not [key for key in parts["state_dict"] if not key.startswith("student.")]
    assert parts["hyper_parameters"]["teacher"] == path
    assert len(parts["hyper_parameters"]["teacher_sha256"]) == 64

    # Another teacher, or another sampler, cannot take its place.
    changed = read_checkpoint(path)
    changed["state_dict"] = {key: value + 1 for key, value in changed["state_dict"].items()}
    torch.save(changed, tmp_path / "other.ckpt")
    again = ["--ckpt_path", "last", "--trainer.max_steps", "6"]
    with pytest.raises(CheckpointError, match=r"other.ckpt: is another file than the teacher"):
        fit(tmp_path / "parts", monkeypatch, *again, "--model.init_args.teacher", str(tmp_path / "other.ckpt"))
    with pytest.raises(ValueError, match=r"began with ddim-2 and cannot go on with ddim-3"):
        fit(tmp_path / "parts", monkeypatch, *again, *given, "--model.init_args.teacher_sampler.init_args.steps", "3")

    # Without the teacher's file: enlarging works, also tile by tile, and training says what it lacks.
    Path(path).unlink()
    image = tmp_path / "photograph.png"
    Image.new("RGB", (36, 28), (90, 120, 30)).save(image)
    for name, options in (
        ("whole", []),
        ("tiles", ["--model.init_args.tile", "64", "--model.init_args.overlap", "16"]),
    ):
        run(["predict", "--ckpt_path", str(last), "--input", str(image), "--output", str(tmp_path / name), *options])
        assert len(list((tmp_path / name).glob("*.png"))) == 1
    with pytest.raises(ConfigError, match=r"teacher.ckpt: no such checkpoint; give a trained diff"):
        fit(tmp_path / "parts", monkeypatch, *again, *given)


# Bad input.


def test_a_student_is_no_teacher(tmp_path: Path) -> None:
    config = of(Distill, teacher=teacher(tmp_path), teacher_sampler=of(DDIM, steps=5))
    model = build(config, "a student")
    assert isinstance(model, Distill)
    student = {**config["init_args"], "student": model.hparams["student"]}
    path = tmp_path / "student.ckpt"
    write_checkpoint(model, {"model": {**config, "init_args": student}}, path)
    assert isinstance(load_method(path), Distill)
    with pytest.raises(CheckpointError, match=r"student.ckpt: holds a student, .* teacher was .*resshift.ckpt"):
        Distill(str(path))


def test_a_teacher_of_one_step_has_nothing_to_distil(tmp_path: Path) -> None:
    path = teacher(tmp_path, sampler=of(DDIM, steps=1))
    with pytest.raises(ValueError, match=r"resshift.ckpt: .* ddim-1, takes one step.*--model.init_args.teacher_"):
        Distill(path)
    assert Distill(path, DDIM(2)).protocol() == "one-step-of-ddim-2"
    one = OneStep("ddim-5", 1.0, 0.2)
    with pytest.raises(ValueError, match="takes one step"):
        Distill(path, one)


@pytest.mark.parametrize(
    ("name", "sampler", "way_out"),
    [
        ("resshift", None, r"DDIM with eta: 0 or .*DPMSolverPlusPlus with stochastic: false as --model"),
        ("sr3", DDIM(5, eta=0.5), r"DDIM with eta: 0"),
        ("sr3", DPMSolverPlusPlus(5, stochastic=True), r"DPMSolverPlusPlus with stochastic: false"),
        ("dossr", None, r"DDIM with eta: 0 or .*DPMSolverPlusPlus with stochastic: false"),
        ("edm", EDMHeun(5, churn=2.0, churn_range=(0.0, 3.0)), r"EDMHeun with eta: 0 and churn: 0"),
        ("relay", None, r"relay_sampler.RelayHeun with eta: 0 as --model"),
        ("relay", Ancestral(5), r"give lightning_modules.diffusion.samplers.DDIM with eta: 0 as"),
    ],
)
def test_a_sampler_that_draws_noise_is_refused(
    name: str, sampler: Sampler | None, way_out: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{name}.ckpt: .*draws noise in its steps.*{way_out}"):
        Distill(teacher(tmp_path, name), sampler)
    assert issubclass(PolicySampler, Ancestral)  # which draws noise, with whatever policy


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"none.ckpt: no such checkpoint; give .* as --model.init_args.teacher$"):
        Distill(path)
    lacks = Distill.missing({"teacher": path}, splits=["train", "val"])
    assert lacks == f"{path}: no such checkpoint; give a trained diffusion method as --model.init_args.teacher"
    assert Distill.missing({"teacher": path}, splits=["predict"]) is None


def test_a_teacher_that_does_not_diffuse_is_refused(tmp_path: Path) -> None:
    config = part(
        "lightning_modules.rrdb.RRDBRegressor",
        network=part("lightning_modules.networks.rrdb.RRDBNet", nf=8, nb=1, gc=4, scale=SCALE),
    )
    write_checkpoint(build(config, "rrdb"), {"model": config}, tmp_path / "rrdb.ckpt")
    with pytest.raises(ValueError, match=r"rrdb.ckpt: holds a RRDBRegressor, .* as --model.init_args.teacher"):
        Distill(str(tmp_path / "rrdb.ckpt"))


def test_a_teacher_of_another_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = begun(teacher(tmp_path, scale=4), DDIM(5), tmp_path)
    with pytest.raises(ValueError, match=r"resshift.ckpt: the teacher was trained for x4, but the data enlarges x2"):
        model.losses(images())
    with pytest.raises(ValueError, match=r"trained for x2, but the data enlarges x4: set --data.init_args.scale 2"):
        fit(tmp_path, monkeypatch, "--model.init_args.teacher", teacher(tmp_path))


def test_a_loss_without_terms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of them positive"):
        Distill(teacher(tmp_path), DDIM(5), 0.0, 0.0, 0.0)
