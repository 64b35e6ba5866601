"""EDM's preconditioning against its formulas."""

import pytest
import torch

from lightning_modules.diffusion.edm import EDMProcess
from lightning_modules.diffusion.parameterization import Noised, Preconditioned
from lightning_modules.diffusion.relay import RelayProcess
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.spacing import time_at
from lightning_modules.diffusion.vp import VP


def draw(process: EDMProcess | RelayProcess, *times: float) -> Noised:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(len(times), 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor(times, dtype=torch.float64)
    x_t = process.diffuse(x0=x0, anchor=x0, t=t, noise=noise)
    return Noised(x_t=x_t, x0=x0, anchor=x0, noise=noise, t=t)


@pytest.mark.parametrize("process", [EDMProcess(), RelayProcess()])
def test_the_loss_on_the_output_is_the_papers_on_the_image(process: EDMProcess | RelayProcess) -> None:
    edm, noised = Preconditioned(sigma_data=0.5), draw(process, 0.05, 0.5, 0.95)
    output = torch.randn(noised.x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x0 = edm.x0(process, output, x_t=noised.x_t, anchor=noised.anchor, t=noised.t)
    sigma = process.std(noised.t).view(-1, 1, 1, 1)
    papers = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * (x0 - noised.x0) ** 2
    weight = edm.weight(process, noised.t).view(-1, 1, 1, 1)
    assert torch.allclose(weight * (output - edm.target(process, noised)) ** 2, papers, rtol=1e-9)


def test_the_target_gives_the_clean_state_back() -> None:
    edm, process, noised = Preconditioned(), RelayProcess(), draw(RelayProcess(), 0.01, 0.4, 1.0)
    target = edm.target(process, noised)
    x0 = edm.x0(process, target, x_t=noised.x_t, anchor=noised.anchor, t=noised.t)
    assert torch.allclose(x0, noised.x0, atol=1e-12)


def test_the_network_reads_unit_variance_and_a_quarter_of_the_log_level() -> None:
    process, t = EDMProcess(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    sigma = process.std(t)
    scaled, label = Preconditioned(label_scale=250.0).read(process, torch.ones(2, 3, 4, 4), t)
    assert torch.allclose(scaled[:, 0, 0, 0].double(), 1 / (sigma**2 + 0.25).sqrt())
    assert torch.allclose(label.double(), 250 * sigma.log() / 4)
    assert label.dtype == torch.float32


def test_no_error_weighs_more_than_the_limit() -> None:
    process, limited = EDMProcess(), Preconditioned(max_weight=1e5)
    t = time_at(process, torch.tensor([0.001, 0.0032, 1.0], dtype=torch.float64))
    _, out, _ = limited.scales(process, t)
    assert torch.allclose(limited.weight(process, t) / out**2, (1 / out**2).clamp(max=1e5))
    assert limited.weight(process, t)[0] < 0.2 and torch.equal(limited.weight(process, t)[1:], torch.ones(2).double())


def test_a_process_that_shrinks_the_image_is_refused() -> None:
    with pytest.raises(TypeError, match="EDM's or Relay's, and not VP"):
        Preconditioned().read(VP(Cosine(10)), torch.zeros(1, 3, 8, 8), torch.tensor([0.5]))
