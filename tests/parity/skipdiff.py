"""SkipDiff: the policy, its loss and updates against the released code, and trajectories under every kind of skip."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Epsilon
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.ppo import Evaluation, Loss, Objective, discounted_returns
from lightning_modules.skipping.reward import Reward, Term
from lightning_modules.skipping.sampler import Pattern, PolicyDecider, SkipSampler
from lightning_modules.sr3 import SR3
from tests.parity.harness import Comparison, Fixture, handed_out


def policy_of(config: Mapping[str, Any], weights: Mapping[str, Tensor], prefix: str = "") -> SkipPolicy:
    """The published policy in a fixture's widths, with its weights under their published names."""
    policy = SkipPolicy(
        channels=config["encoder_channels"],
        kernels=config.get("kernels", (9, 5, 5, 5)),
        resize=config["resize"],
        hidden=None,
        norm="batch",
        decisions=None,
    )
    policy.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return policy.eval()


class Forced(PolicyDecider):
    """Takes recorded actions `[K,B]`, whatever the policy says."""

    def __init__(self, policy: SkipPolicy, forced: Tensor) -> None:
        super().__init__(policy, greedy=False)
        self.forced = forced

    def act(self, decision: int, logits: Tensor) -> Tensor:
        return self.forced[decision]


def check_policy(fixture: Fixture) -> Iterator[Comparison]:
    """Step by step and as a whole sequence, with the norm's statistics of the file and of the batch."""
    policy, states = policy_of(fixture.config, fixture.weights), fixture.inputs["states"]
    resized = policy.observe(states.flatten(0, 1))
    yield Comparison("resized_t0_b0", resized[0], fixture.outputs["resized_t0_b0"], atol=1e-5)
    features = policy.state_encoder(resized[: states.shape[1]]).flatten(1)
    yield Comparison("features_eval_t0", features, fixture.outputs["features_eval_t0"], atol=1e-5)
    observations = resized.unflatten(0, states.shape[:2])
    for mode in ("eval", "train"):
        policy.train(mode == "train")
        memory, probs, hidden = policy.initial_state(states.shape[1], states.device), [], []
        for k, observation in enumerate(observations):
            logits, _, memory = policy.step(observation, memory, k)
            probs.append(logits.softmax(-1))
            hidden.append(memory)
        yield Comparison(f"probs_{mode}", torch.stack(probs), fixture.outputs[f"probs_{mode}"], atol=1e-5)
        yield Comparison(f"hidden_{mode}", torch.stack(hidden), fixture.outputs[f"hidden_{mode}"], atol=1e-5)
        if mode == "train":
            norm = policy.state_encoder[1]
            for name in ("running_mean", "running_var"):
                expected = fixture.outputs[f"bn1_{name}_after_act"]
                yield Comparison(f"bn1_{name}", getattr(norm, name).clone(), expected, atol=1e-5)
        evaluated = Evaluation.of(*policy.sequence(observations), fixture.inputs["actions"])
        for name, actual in (
            ("logprobs", evaluated.logprob),
            ("values", evaluated.value),
            ("entropy", evaluated.entropy),
        ):
            yield Comparison(f"{name}_{mode}", actual, fixture.outputs[f"{name}_{mode}"], atol=1e-5)


def official(config: Mapping[str, Any], gamma: float) -> Objective:
    """The released loss."""
    return Objective(
        clip=config.get("clip", 0.2),
        gamma=gamma,
        value_weight=config.get("value_coef", 0.5),
        entropy_weight=config.get("entropy_coef", 0.01),
        normalize="return",
    )


def official_loss(now: Evaluation, old_logprob: Tensor, rewards: Tensor, objective: Objective) -> Loss:
    """The released loss counts every decision, also the one without effect."""
    counted = torch.ones_like(rewards, dtype=torch.bool)
    targets = objective.targets(rewards, counted)
    return objective.loss(now, old_logprob=old_logprob, targets=targets, counted=counted)


def check_ppo_loss(fixture: Fixture) -> Iterator[Comparison]:
    """Returns, normalization, advantage, ratio, the released loss with its gradients, and ours."""
    for case in sorted({key.split("/")[0] for key in fixture.outputs}):
        rewards = fixture.inputs["rewards_dense" if case.endswith("_dense") else "rewards_terminal"]
        gamma = float(case.removeprefix("g").removesuffix("_dense"))
        yield from check_ppo_case(fixture, case, rewards, official(fixture.config, gamma))


def check_ppo_case(fixture: Fixture, case: str, rewards: Tensor, objective: Objective) -> Iterator[Comparison]:
    """One discount and one kind of reward."""
    leaves = {
        name: fixture.inputs[key].clone().requires_grad_()
        for name, key in (("logprobs", "new_logprobs"), ("values", "values"), ("entropy", "entropy"))
    }
    now = Evaluation(logprob=leaves["logprobs"], value=leaves["values"], entropy=leaves["entropy"])
    old = fixture.inputs["old_logprobs"]
    with torch.enable_grad():
        loss = official_loss(now, old, rewards, objective)
        gradients = torch.autograd.grad(loss.total, list(leaves.values()))
    counted = torch.ones_like(rewards, dtype=torch.bool)
    targets = objective.targets(rewards, counted)
    advantage = objective.advantage(targets, now.value, counted)
    found = {
        "loss": loss.total.detach(),
        "returns": discounted_returns(rewards, objective.gamma),
        "returns_normalised": targets,
        "advantage": advantage,
        "ratio": (now.logprob - old).exp(),
        "clean_loss_masked": clean_loss(now, old, rewards, objective),
        **{f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)},
    }
    for name, actual in found.items():
        yield Comparison(f"{case}/{name}", actual, fixture.outputs[f"{case}/{name}"], atol=1e-6)
    elementwise = fixture.outputs[f"{case}/loss_elementwise"].mean()
    yield Comparison(f"{case}/loss_elementwise", loss.total.detach(), elementwise, atol=1e-6)


def clean_loss(now: Evaluation, old_logprob: Tensor, rewards: Tensor, objective: Objective) -> Tensor:
    """Our default recipe: raw returns, standardized advantage, the forced decision left out."""
    own = Objective(objective.clip, objective.gamma, objective.value_weight, objective.entropy_weight)
    counted = torch.ones_like(rewards, dtype=torch.bool)
    counted[-1] = False
    targets = own.targets(rewards, counted)
    return own.loss(now, old_logprob=old_logprob, targets=targets, counted=counted).total


def check_ppo_update(fixture: Fixture) -> Iterator[Comparison]:
    """Epochs of replay with gradients through all decisions, then Adam."""
    for case in sorted({key.split("/")[0] for key in fixture.outputs}):
        mode, epochs = case.split("_K")
        with torch.enable_grad():
            yield from check_update_case(fixture, case, mode == "train", int(epochs))


def check_update_case(fixture: Fixture, case: str, training: bool, epochs: int) -> Iterator[Comparison]:
    """One norm mode and one number of epochs."""
    config, inputs, adam = fixture.config, fixture.inputs, fixture.config["adam"]
    policy = policy_of(config, fixture.weights, "policy.").train(training)
    optimizer = torch.optim.Adam(policy.parameters(), lr=adam["lr"], betas=tuple(adam["betas"]), eps=adam["eps"])
    states, objective = inputs["states"], official(config, config["gamma"])
    observations = policy.observe(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    for _ in range(epochs):
        now = Evaluation.of(*policy.sequence(observations), inputs["actions"])
        loss = official_loss(now, inputs["old_logprobs"], inputs["rewards"], objective)
        optimizer.zero_grad()
        loss.total.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
        optimizer.step()
    outputs = {key.removeprefix(f"{case}/"): value for key, value in fixture.outputs.items() if key.startswith(case)}
    yield Comparison(f"{case}/loss", loss.total.detach(), outputs.pop("loss_last_epoch"), atol=2e-6)
    updated = dict(policy.named_parameters())
    for key, expected in outputs.items():
        kind, name = key.split("/")
        actual = (updated[name] if kind == "after" else gradients[name]).detach()
        if kind == "after":  # Adam's first step is lr times the gradient's sign, which rounding decides near 0
            undecided = gradients[name].abs() < 1e-6
            yield Comparison(
                f"{case}/{key} near 0", actual[undecided], expected[undecided], atol=2 * adam["lr"] * epochs
            )
            actual, expected = actual[~undecided], expected[~undecided]
        yield Comparison(f"{case}/{key}", actual, expected, atol=1e-5)


def sr3_of(config: Mapping[str, Any], weights: Mapping[str, Tensor], steps: int, prefix: str = "") -> SR3:
    """SR3 on a cosine schedule, the backbone of SkipDiff, with the fixture's U-Net."""
    names = ("inner_channel", "channel_mults", "attn_res", "res_blocks", "norm_groups", "dropout", "image_size")
    network = SR3UNet(**{name: config[name] for name in names}, in_channel=config["in_channel"])
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return SR3(
        network=network,
        process=VP(Cosine(steps), continuous=True),
        parameterization=Epsilon("level"),
        space=Pixels(),
        sampler=Ancestral(steps),
    ).eval()


def cut_start(process: VP, coarse_steps: int) -> float:
    """The time at which a long cosine chain stands at the level that a fresh one of `coarse_steps` starts from."""
    one = torch.ones(1, dtype=torch.float64)
    wanted = VP(Cosine(coarse_steps)).alpha(one)
    above, at_end = process.alpha(one - 1 / process.steps), process.alpha(one)
    return float(1 - (wanted - at_end) / (above - at_end) / process.steps)


class Run:
    """SkipDiff's chains on a fixture's SR3, with the fixture's noise handed out in order."""

    def __init__(self, model: SR3, up: Tensor, draws: Iterable[Tensor]) -> None:
        self.model, self.up, self.randn = model, up, handed_out(draws)
        self.entry = torch.empty(0)

    def __call__(self, sampler: SkipSampler) -> Tensor:
        """The image; `entry` is the end of the coarse chain."""
        batch = Batch(lr=self.up, up=self.up, key=[str(i) for i in range(len(self.up))])
        _, denoiser, _, _ = self.model.prepare(batch)
        steps = sampler.prepare(denoiser, self.randn, None)
        self.entry = steps.entry
        return sampler.refine(sampler.decider, steps)


def check_trajectory(fixture: Fixture) -> Iterator[Comparison]:
    """The end of the coarse chain, and the image under the three kinds of skip."""
    config, inputs = fixture.config, fixture.inputs
    coarse = config["n_csa"] + 1
    fine = coarse * config["N"]
    for skip in ("respaced", "keep", "reset"):
        model = sr3_of(config, fixture.weights, fine)
        run = Run(model, inputs["x_up"], [inputs["x_T"], *inputs["z_csa"], *inputs["z_fsr"]])
        decider = Pattern(inputs["actions"] == 0)
        sampler = SkipSampler(decider, coarse, fine, skip, cut_start(model.process, coarse))
        image = run(sampler)
        yield Comparison("x_N", run.entry, fixture.outputs["x_N"], atol=1e-4)
        yield Comparison(f"x0_{skip}", image, fixture.outputs[f"x0_{skip}"], atol=1e-4)
        runs = torch.tensor([config["n_eval_fsr"] + config["n_csa"]])
        yield Comparison("evaluations", sampler.evaluations(decider), runs)


class StandIn(Metric):
    """The denominator of the reward that the fixture was made with."""

    higher_is_better = False

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.value = 4 + 255 * (preds - target).abs().mean() / 25

    def compute(self) -> Tensor:
        return self.value


def check_rollout(fixture: Fixture) -> Iterator[Comparison]:
    """A batch under recorded actions with rewards and loss, then one image at a time under the likelier action."""
    yield from check_training_rollout(fixture)
    for mode in ("train", "eval"):
        yield from check_test_rollout(fixture, mode)


def official_run(fixture: Fixture, decider: PolicyDecider, rows: slice) -> tuple[SkipSampler, Run]:
    """The released code's chains for some images of the fixture."""
    config, inputs = fixture.config, fixture.inputs
    model = sr3_of(config["unet"], fixture.weights, config["fsr_T"], "unet.")
    last = torch.zeros_like(inputs["z_fsr"][:1])
    draws = torch.cat([inputs["x_T"][None], inputs["z_csa"], inputs["z_fsr"], last])[:, rows]
    start = cut_start(model.process, config["csa_T"])
    sampler = SkipSampler(decider, config["csa_T"], config["fsr_T"], "reset", start)
    return sampler, Run(model, inputs["x_up"][rows], list(draws))


def check_training_rollout(fixture: Fixture) -> Iterator[Comparison]:
    """Released training: norm over the batch, all decisions counted, terminal reward 1/Q."""
    inputs, outputs, batch_size = fixture.inputs, fixture.outputs, len(fixture.inputs["x_up"])
    policy = policy_of(fixture.config["policy"], fixture.weights, "policy.").train()
    decider = StateRecorder(policy, inputs["actions"])
    sampler, run = official_run(fixture, decider, slice(None))
    image = run(sampler)
    reward = Reward([Term(StandIn(), inverse=True)], price=0, relative=False)
    terminal = reward.quality(reward.measure(image, inputs["hr"]))
    rewards = torch.zeros(sampler.decisions, batch_size)
    rewards[-1] = terminal
    now = Evaluation.of(*policy.sequence(torch.stack(decider.observations)), inputs["actions"])
    loss = official_loss(now, decider.evaluation().logprob, rewards, official({}, 0.7))
    # The released code evaluates one coarse step per image that it throws away.
    evaluations = sampler.evaluations(decider).sum() + batch_size
    yield Comparison("states", torch.stack(decider.states), outputs["states"], atol=2e-5)
    yield Comparison("final", image, outputs["final"], atol=2e-5)
    yield Comparison("logprobs", decider.evaluation().logprob, outputs["logprobs"], atol=1e-5)
    yield Comparison("rewards", rewards, outputs["rewards"], atol=1e-5)
    yield Comparison("nfe_total_batch", evaluations, outputs["nfe_total_batch"])
    yield Comparison("loss", loss.total, outputs["loss"], atol=1e-4)


class StateRecorder(Forced):
    """Keeps the states that the policy was shown."""

    def begin(self, x: Tensor) -> None:
        super().begin(x)
        self.states: list[Tensor] = []

    def choose(self, decision: int, x: Tensor) -> Tensor:
        self.states.append(x)
        return super().choose(decision, x)


def check_test_rollout(fixture: Fixture, mode: str) -> Iterator[Comparison]:
    """Released testing: one image at a time, the likelier action."""
    policy = policy_of(fixture.config["policy"], fixture.weights, "policy.").train(mode == "train")
    images, probs, evaluations = [], [], []
    for i in range(len(fixture.inputs["x_up"])):
        decider = PolicyDecider(policy)
        sampler, run = official_run(fixture, decider, slice(i, i + 1))
        images.append(run(sampler))
        probs.append(torch.stack(decider.logits).softmax(-1)[:, 0])
        evaluations.append(sampler.evaluations(decider) + 1)
    outputs, name = fixture.outputs, f"bn_{mode}"
    yield Comparison(f"test_final_{name}", torch.cat(images), outputs[f"test_final_{name}"], atol=1e-4)
    yield Comparison(f"test_probs_{name}", torch.stack(probs), outputs[f"test_probs_{name}"], atol=1e-5)
    yield Comparison(f"test_nfe_{name}", torch.cat(evaluations), outputs[f"test_nfe_{name}"])


CHECKS = {
    "official_policy": check_policy,
    "official_ppo_loss": check_ppo_loss,
    "official_ppo_update": check_ppo_update,
    "official_rollout": check_rollout,
    "skipdiff_trajectory": check_trajectory,
}
