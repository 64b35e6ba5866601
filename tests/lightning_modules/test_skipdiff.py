"""SkipDiff on toy methods whose best decisions are known."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanAbsoluteError

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, write_checkpoint
from lightning_modules.config import load_method
from lightning_modules.diffusion.parameterization import Clean
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.space import Pixels
from lightning_modules.skipdiff import SkipDiff
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.policy_sampler import PolicySampler
from lightning_modules.skipping.ppo import Evaluation, Objective
from lightning_modules.skipping.reward import Reward, Term
from lightning_modules.skipping.rollouts import Episodes
from lightning_modules.skipping.sampler import Pattern, SkipSampler

RULE = (1, 0, 0, 1, 1, 0, 1, 0, 1)
GAIN = 0.05  # what a step adds to the image
IMAGES = 32


class Noiseless(Process):
    """The state is the last estimate; a step replaces it."""

    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        return x0

    def std(self, t: Tensor) -> Tensor:
        return 0 * t

    def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * s, 0 * s

    def grid(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class Adds(nn.Module):
    """A network that changes the image by known amounts in nine of the ten fine steps, and never in the others."""

    stride = 1

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        step = (label * 100).round().long()  # 10 before the first decision, 1 before the forced step
        sign = torch.where(x.mean(dim=(1, 2, 3)) > 0, 1.0, -1.0)
        rule = torch.tensor([0, 0, *reversed(RULE)], dtype=torch.float32)[step.clamp(max=10)] * 2 - 1
        change = {"image": torch.ones_like(sign), "clock": rule, "both": rule * sign}[self.kind]
        return x + GAIN * (change * ((step <= 10) & (step > 1))).view(-1, 1, 1, 1)


class Toy(DiffusionModule):
    """Starts from `up` and adds."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            Adds(kind), Noiseless(), Clean("time"), Pixels(clip=False), Ancestral(100), condition_on="none"
        )


def images_of(kind: str, count: int = IMAGES) -> Batch:
    """Images of one value each, and the best that steps can make of them."""
    value = torch.randint(2, (count,)) - 0.5
    best = {"image": 9 * (value > 0), "clock": 5, "both": torch.where(value > 0, 5, 4)}[kind] * GAIN
    if kind == "clock":
        value = torch.rand(count) - 0.5
    up = value.view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    hr = (value + best).view(-1, 1, 1, 1).expand_as(up)
    return Batch(lr=up, up=up, hr=hr, key=[str(i) for i in range(count)])


class Stream(IterableDataset[Batch]):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield images_of(self.kind)


@pytest.fixture
def base(tmp_path: Path) -> Any:
    def save(kind: str, name: str = "base.ckpt", shift: float = 0.0) -> str:
        path = tmp_path / name
        toy = Toy(kind)
        nn.init.constant_(toy.network.unused, shift)
        write_checkpoint(toy, {"model": {"class_path": f"{__name__}.Toy", "init_args": {"kind": kind}}}, path)
        return str(path)

    return save


def small_policy(**changes: Any) -> SkipPolicy:
    return SkipPolicy(channels=(4, 4), kernels=(5, 3), resize=16, **{"hidden": 32, "norm": "none", **changes})


def error_reward(price: float = 0.0, relative: bool = False) -> Reward:
    # 1 less than nothing where the image is off by all that nine steps add; images in [0, 1] have half the distance.
    return Reward([Term(MeanAbsoluteError(), weight=2 / (9 * GAIN))], price, relative)


def adam(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=3e-3)


def skipdiff(checkpoint: str, **changes: Any) -> SkipDiff:
    # With the released entropy weight of 0.01, one in four runs settles before it has tried enough.
    arguments: dict[str, Any] = {"policy": small_policy(), "reward": error_reward(), "optimizer": adam, "skip": "keep"}
    arguments["objective"] = Objective(entropy_weight=0.03)
    return SkipDiff(checkpoint, **{**arguments, **changes})


def train(model: LightningModule, kind: str, iterations: int, folder: Path) -> Trainer:
    trainer = Trainer(
        max_steps=4 * iterations,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, DataLoader(Stream(kind), batch_size=None))
    return trainer


def greedy_reward(model: SkipDiff, kind: str) -> float:
    """1 is the best there is, 0 what is off by all that nine steps add."""
    batch = images_of(kind)
    sr = model.eval().super_resolve(batch)
    return 1 + float(model.reward.quality(model.reward.measure(sr, batch["hr"])).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_which_images_to_run(base: Any, seed: int, tmp_path: Path) -> None:
    seed_everything(seed)
    model = skipdiff(base("image"), policy=small_policy(hidden=16, decisions=None))
    assert greedy_reward(model, "image") < 0.9
    train(model, "image", 30, tmp_path)
    assert greedy_reward(model, "image") >= 0.99
    ran = torch.stack(model.greedy.ran)[:-1].float().mean(0)
    assert set(ran.tolist()) == {0.0, 1.0}


def test_learns_which_steps_to_run(base: Any, tmp_path: Path) -> None:
    seed_everything(0)
    model = skipdiff(base("clock"))
    train(model, "clock", 40, tmp_path)
    assert greedy_reward(model, "clock") >= 0.99
    assert torch.equal(torch.stack(model.greedy.ran)[:-1], torch.tensor(RULE).bool()[:, None].expand(-1, IMAGES))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_which_steps_to_run_for_which_image(base: Any, seed: int, tmp_path: Path) -> None:
    seed_everything(seed)
    model = skipdiff(base("both"))
    train(model, "both", 100, tmp_path)
    assert greedy_reward(model, "both") >= 0.99


@pytest.mark.parametrize(("price", "runs"), [(0.005, 9), (0.05, 0)])
def test_a_price_above_what_a_step_is_worth_stops_all_steps(base: Any, price: float, runs: int, tmp_path: Path) -> None:
    # A step is worth 1/9 of the scale where it is right and as much less where it is wrong; here all are right.
    seed_everything(0)
    reward = Reward([Term(MeanAbsoluteError(), weight=0.2 / (9 * GAIN))], price, relative=True)
    model = skipdiff(base("image"), reward=reward)

    class Positive(Stream):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                batch["up"] = batch["lr"] = torch.full((IMAGES, 3, 16, 16), 0.5)
                batch["hr"] = batch["up"] + 9 * GAIN
                yield batch

    trainer = Trainer(
        max_steps=120, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(model, DataLoader(Positive("image"), batch_size=None))
    model.eval().super_resolve(next(iter(Positive("image"))))
    assert model.plan.evaluations(model.greedy).tolist() == [9 + runs + 1] * IMAGES


def test_training_leaves_the_base_alone_and_out_of_the_checkpoint(base: Any, tmp_path: Path) -> None:
    model = skipdiff(base("image"), policy=small_policy(norm="batch"))
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    policy = {name: value.clone() for name, value in model.policy.state_dict().items()}
    trainer = train(model, "image", 2, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.base.state_dict().items())
    assert any(not torch.equal(value, policy[name]) for name, value in model.policy.state_dict().items())
    assert not model.base.training and model.policy.training
    saved = trainer.strategy.lightning_module_state_dict()
    checkpoint = {"state_dict": saved}
    model.on_save_checkpoint(checkpoint)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {
        "policy",
        "base_fingerprint",
        "levels",
        "advantage_scale",
    }


def test_the_first_epoch_starts_from_the_policy_that_played(base: Any) -> None:
    seed_everything(0)
    model = skipdiff(base("image"), policy=small_policy(norm="group"))
    episodes = model.rollouts.play(images_of("image"), model.policy, count_forced=False)
    logits, _ = model.policy.sequence(episodes.observations)
    again = logits.log_softmax(-1).gather(-1, episodes.actions[..., None])[..., 0]
    assert ((again - episodes.evaluation.logprob).exp() - 1).abs().max() < 1e-6
    assert not episodes.counted[-1].any() and episodes.counted[:-1].all()
    assert episodes.ran[-1].all() and torch.equal(episodes.ran[:-1], episodes.actions[:-1] == 0)


def test_images_without_a_finite_reward_are_left_out(base: Any) -> None:
    class Broken(MeanAbsoluteError):
        def compute(self) -> Tensor:
            value = super().compute()
            return value if value < 0.1 else value * torch.nan

    seed_everything(0)
    reward = Reward([Term(Broken(), weight=1.0)], relative=False)
    model = skipdiff(base("image"), reward=reward)
    episodes = model.rollouts.play(images_of("image"), model.policy, count_forced=True)
    assert episodes.rewards.isfinite().all()
    left_out = ~episodes.counted.any(0)
    assert left_out.any() and (episodes.rewards[left_out] == 0).all() and (episodes.rewards[~left_out] != 0).any()


def config_of(checkpoint: str, **arguments: Any) -> dict[str, Any]:
    """The model's part of a config file."""
    mae = {"class_path": "torchmetrics.MeanAbsoluteError"}
    term = {"class_path": "lightning_modules.skipping.reward.Term", "init_args": {"score": mae}}
    policy = {"channels": [4, 4], "kernels": [5, 3], "resize": 16, "hidden": 32, "norm": "none"}
    given = {
        "base_checkpoint": checkpoint,
        "policy": {"class_path": "lightning_modules.skipping.policy.SkipPolicy", "init_args": policy},
        "reward": {"class_path": "lightning_modules.skipping.reward.Reward", "init_args": {"terms": [term]}},
        **arguments,
    }
    return {"model": {"class_path": "lightning_modules.skipdiff.SkipDiff", "init_args": given}}


@pytest.fixture
def trained(base: Any, tmp_path: Path) -> tuple[SkipDiff, str]:
    """A policy that runs odd decisions of bright images, say, and its checkpoint."""
    seed_everything(3)
    checkpoint = base("both")
    model = skipdiff(checkpoint)
    with torch.no_grad():
        model.policy.actor[0].weight *= 20
    path = str(tmp_path / "policy.ckpt")
    write_checkpoint(model, config_of(checkpoint, skip="keep"), path)
    return model.eval(), path


def test_a_reloaded_policy_decides_the_same(trained: tuple[SkipDiff, str]) -> None:
    model, path = trained
    batch = images_of("both")
    sr, ran = model.super_resolve(batch), torch.stack(model.greedy.ran)
    assert 0 < ran[:-1].float().mean() < 1
    loaded = load_method(path)
    assert isinstance(loaded, SkipDiff)
    assert torch.equal(loaded.super_resolve(batch), sr)
    assert torch.equal(torch.stack(loaded.greedy.ran), ran)
    assert loaded.protocol() == "skip-keep-10-100"


def test_the_policy_is_a_sampler_for_any_method_that_fits(trained: tuple[SkipDiff, str], base: Any) -> None:
    model, path = trained
    batch = images_of("both")
    other = load_method(base("both", "other.ckpt", shift=1.0))
    sampler = PolicySampler(path)
    assert torch.equal(other.super_resolve(batch, sampler), model.super_resolve(batch))
    assert sampler.name(Noiseless()) == "skip-keep-10-100"


def test_a_policy_sampler_refuses_other_noise_levels(trained: tuple[SkipDiff, str]) -> None:
    class Noisy(Noiseless):
        def std(self, t: Tensor) -> Tensor:
            return t

    with pytest.raises(
        ValueError, match=r"policy.ckpt: the policy was trained at noise levels from 0 to 0, but .* 0.1"
    ):
        PolicySampler(trained[1]).times(Noisy())


def test_a_policy_sampler_refuses_the_checkpoint_of_another_method(base: Any) -> None:
    with pytest.raises(CheckpointError, match=r"base.ckpt: holds .*Toy, not a skip policy"):
        PolicySampler(base("image"))
    with pytest.raises(CheckpointError, match=r"none.ckpt: no such checkpoint; .*--model.init_args.sampler"):
        PolicySampler("none.ckpt")


def test_training_can_start_from_a_policy(trained: tuple[SkipDiff, str], base: Any, tmp_path: Path) -> None:
    model, path = trained
    begun = skipdiff(base("image", "other.ckpt"), policy_weights=path)
    train(begun, "image", 0, tmp_path)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(begun.policy.state_dict()[name], value), name

    larger = skipdiff(base("image"), policy=small_policy(hidden=16), policy_weights=path)
    with pytest.raises(CheckpointError, match=r"policy\.ckpt: does not fit the policy as configured: .*size mismatch"):
        train(larger, "image", 0, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"none\.ckpt: no such checkpoint; .* as --model.init_args.policy_weights"
    ):
        train(skipdiff(base("image"), policy_weights="none.ckpt"), "image", 0, tmp_path)


def test_another_base_is_refused(trained: tuple[SkipDiff, str], base: Any, tmp_path: Path) -> None:
    model, path = trained
    other = base("both", "other.ckpt", shift=1.0)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["base_checkpoint"] = other
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(
        CheckpointError, match=r"trained on another base than .*other.ckpt.*SHA-256.*configs/sampler/skip_policy\.yaml"
    ):
        load_method(tmp_path / "moved.ckpt")
    digest = hashlib.sha256()
    for name, value in sorted(model.base.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + value.numpy().tobytes())
    assert bytes(model.base_fingerprint.tolist()) == digest.digest()


def test_a_base_without_such_levels_is_refused(base: Any) -> None:
    with pytest.raises(ValueError, match=r"fine_steps must be a multiple"):
        skipdiff(base("image"), fine_steps=95)
    with pytest.raises(ValueError, match=r"do not fit the base's process Noiseless: .*start must lie"):
        skipdiff(base("image"), start=0.5)


def test_an_absent_base_is_asked_for() -> None:
    with pytest.raises(CheckpointError, match=r"none.ckpt: no such checkpoint; .* --model.init_args.base_checkpoint"):
        skipdiff("none.ckpt")


def test_a_base_that_another_version_wrote_is_named(base: Any) -> None:
    path = base("image")
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["tempo"] = 3
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"base.ckpt: .* cannot be built here: .*\.tempo: no such key .*; give"):
        skipdiff(path)


def test_a_base_that_does_not_diffuse_is_refused(tmp_path: Path) -> None:
    from lightning_modules.networks.rrdb import RRDBNet
    from lightning_modules.rrdb import RRDBRegressor

    network = {"class_path": "lightning_modules.networks.rrdb.RRDBNet", "init_args": {"scale": 4, "nf": 4, "nb": 1}}
    config = {"class_path": "lightning_modules.rrdb.RRDBRegressor", "init_args": {"network": network}}
    write_checkpoint(RRDBRegressor(RRDBNet(4, 4, 1)), {"model": config}, tmp_path / "rrdb.ckpt")
    with pytest.raises(ValueError, match=r"rrdb.ckpt: holds a RRDBRegressor, which takes no sampling steps"):
        skipdiff(str(tmp_path / "rrdb.ckpt"))


def test_the_comparison_shows_every_way_to_skip(trained: tuple[SkipDiff, str], capsys: Any, tmp_path: Path) -> None:
    model, _ = trained
    batch = images_of("both", 4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(model, DataLoader([batch], batch_size=None), verbose=False)
    rows = model.table.rows()
    assert set(rows) == {"policy", "all-run", "all-skip", "random", "best static subset"}
    assert (rows["all-run"]["evaluations"], rows["all-skip"]["evaluations"]) == (19, 10)
    assert rows["random"]["evaluations"] == pytest.approx(rows["policy"]["evaluations"], abs=1)
    rewards = {name: float(sums[0]) for name, sums in model.table.subsets.items()}
    assert len(rewards) == 512 and model.table.best_subset() == max(rewards, key=rewards.__getitem__)
    for name in list(rewards)[::40]:
        decider = Pattern([run == "1" for run in name])
        image = model.base.super_resolve(batch, SkipSampler(decider, skip="keep"))
        measured = model.reward.measure(image, batch["hr"])
        assert rewards[name] == pytest.approx(float(model.reward.quality(measured).sum()), abs=1e-5)
    printed = capsys.readouterr().out
    assert "best static subset" in printed and "4 images" in printed
    logged = trainer.callback_metrics
    assert float(logged["test/reward/all-run"]) == pytest.approx(rows["all-run"]["reward"])
    assert sum(float(logged[f"test/evaluations_{count}"]) for count in range(10, 20)) == pytest.approx(1)


def test_the_verdict_names_the_winner(base: Any) -> None:
    model = skipdiff(base("clock"))
    batch = images_of("clock", 4)
    model.eval()
    for right, message in ((1, "gets as much reward as the policy"), (0, "wins: it gets")):
        decider = Pattern([run == right for run in RULE] + [True])
        sr = model.rollouts.images(batch, {"policy": decider})["policy"]
        model.table.reset()
        model.rollouts.compare(batch, decider, sr, model.table)
        verdict = model.table.verdict()
        assert verdict.startswith("The best static subset (1001101011)") and message in verdict


def test_reinforce_is_a_setting(base: Any, tmp_path: Path) -> None:
    seed_everything(0)
    objective = Objective(clip=float("inf"), value_weight=0.0)
    model = skipdiff(base("image"), objective=objective, epochs=1)
    trainer = Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    critic = {name: value.clone() for name, value in model.policy.critic.state_dict().items()}
    trainer.fit(model, DataLoader(Stream("image"), batch_size=None))
    assert greedy_reward(model, "image") >= 0.95
    assert all(torch.equal(value, critic[name]) for name, value in model.policy.critic.state_dict().items())


def test_minibatches_hold_whole_episodes(base: Any, tmp_path: Path) -> None:
    seed_everything(0)
    model = skipdiff(base("image"), minibatches=4, epochs=2)
    seen: list[torch.Size] = []
    replay = model.policy.sequence
    model.policy.sequence = lambda x: (seen.append(x.shape), replay(x))[1]  # type: ignore[method-assign]
    trainer = Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(model, DataLoader(Stream("image"), batch_size=None))
    assert seen == [torch.Size([10, 8, 3, 16, 16])] * 8


def test_random_skips_are_as_many_as_the_policys_own(base: Any) -> None:
    """The forced last step does not count: a policy that skips all it may is compared with one that does the same."""
    model = skipdiff(base("clock")).eval()
    batch = images_of("clock", 8)
    for runs, evaluations in ((False, 10), (True, 19)):
        decider = Pattern([runs] * 10)
        sr = model.rollouts.images(batch, {"policy": decider})["policy"]
        model.table.reset()
        model.rollouts.compare(batch, decider, sr, model.table)
        assert model.table.rows()["random"]["evaluations"] == evaluations
        best = model.table.rows()["best static subset"]["evaluations"]
        assert best == 9 + model.table.best_subset().count("1")  # the coarse chain without its last step


def test_gradients_are_clipped_to_their_norm(base: Any, tmp_path: Path) -> None:
    seed_everything(0)
    model = skipdiff(base("image"), gradient_clip=1e-3, epochs=1, optimizer=partial(torch.optim.SGD, lr=1.0))
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.policy.parameters()])
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(model, DataLoader(Stream("image"), batch_size=None))
    after = torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=0.02)


def test_the_floor_of_advantages_is_that_of_the_first_iterations(base: Any) -> None:
    model = skipdiff(base("image"), advantage_floor=0.5)
    counted = torch.ones(2, 2, dtype=torch.bool)
    zeros = Evaluation(logprob=torch.zeros(2, 2), entropy=torch.zeros(2, 2), value=torch.zeros(2, 2))
    nothing = torch.zeros(2, 2)
    episodes = Episodes(nothing, nothing, zeros, counted, counted, nothing[0], nothing[0])
    spread = torch.tensor([[1.0, -1.0], [1.0, -1.0]])  # of deviation 1
    floors = [model._advantage_floor(spread * (k + 1), episodes) for k in range(12)]
    assert floors[:10] == pytest.approx([0.5 * (k + 2) / 2 for k in range(10)])
    assert floors[10:] == [floors[9]] * 2


def test_only_the_last_decision_is_rewarded(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = skipdiff(base("image"), epochs=0, objective=Objective(gamma=0.5))
    seen: list[Tensor] = []
    targets = Objective.targets

    def recording(self: Objective, rewards: Tensor, counted: Tensor) -> Tensor:
        seen.append(rewards)
        return targets(self, rewards, counted)

    monkeypatch.setattr(Objective, "targets", recording)
    monkeypatch.setattr(SkipDiff, "optimizers", lambda self: None)
    model.learn(model.rollouts.play(images_of("image", 4), model.policy, count_forced=False))
    assert seen[0][:-1].abs().max() == 0 and seen[0][-1].abs().min() > 0
