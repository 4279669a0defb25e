"""The sub-VP process, its samplers and its loss, against Gaussians whose score is known exactly."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from unihpe_ref.diffusion import SDES, VE, VP, ScoreNetwork, SubVP, denoising_loss, make_sde, sample
from unihpe_ref.diffusion.score_network import PARAMETERISATIONS, sinusoidal_embedding
from unihpe_ref.parts import Part

SDE = SubVP()
MEAN, STD = 0.4, 0.3


def exact_noise(x: Tensor, t: Tensor, sde=SDE) -> Tensor:
    """The noise in x_t for data N(MEAN, STD^2): minus sigma times the score of N(m mu, m^2 s^2 + sigma^2)."""
    mean, std = sde.mean(t)[:, None], sde.std(t)[:, None]
    return std * (x - mean * MEAN) / (mean.square() * STD**2 + std.square())


@pytest.mark.parametrize("name", SDES)
@given(time=st.floats(1e-4, 1.0))
def test_marginals_solve_the_equations_of_the_process(name: str, time: float) -> None:
    """dm / dt = f m, and the variance obeys dv / dt = 2 f v + g^2."""
    sde = make_sde(name)
    t = torch.tensor(time, dtype=torch.float64, requires_grad=True)
    if name != "ve":  # whose mean is constant
        (slope,) = torch.autograd.grad(sde.mean(t), t)
        assert_close(slope, sde.drift(t) * sde.mean(t))
    variance = sde.std(t).square()
    (slope,) = torch.autograd.grad(variance, t)
    assert_close(slope, 2 * sde.drift(t) * variance + sde.diffusion_squared(t))


def test_noise_levels_begin_at_zero() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(SDE.mean(ends), torch.tensor([1.0, math.exp(-0.25 * 19.9 - 0.05)], dtype=torch.float64))
    for name in SDES:
        assert make_sde(name).mean(ends)[0] == 1
        assert make_sde(name).std(ends)[0] == 0
    assert 0.9999 < SDE.std(ends)[1] < 1
    assert 0.9999 < VP().std(ends)[1] < 1
    assert_close(VE().std(ends)[1].item(), 50.0, rtol=1e-6, atol=0)


def test_small_noise_levels_keep_their_digits() -> None:
    t = torch.tensor([1e-5])
    assert_close(SDE.std(t).double(), SDE.std(t.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("sampler", "std"), [("sde", STD), ("ode", STD), ("gfpose", 0.0)])
def test_samplers_draw_from_the_data_and_gfpose_finds_its_mean(sampler: str, std: float, name: str) -> None:
    sde = make_sde(name)
    drawn = sample(
        lambda x, t: exact_noise(x, t, sde),
        (20_000, 1),
        sde,
        sampler=sampler,
        steps=400,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    assert abs(drawn.mean().item() - MEAN) < 0.01
    assert abs(drawn.std().item() - std) < 0.01


def test_ode_converges_as_the_steps_grow() -> None:
    """Heun follows the flow: halving the step brings the samples of one start closer to their limit."""

    def drawn(steps: int) -> Tensor:
        start = torch.Generator().manual_seed(1)
        return sample(exact_noise, (64, 3), SDE, sampler="ode", steps=steps, generator=start, dtype=torch.float64)

    limit = drawn(1600)
    errors = [(drawn(steps) - limit).abs().max().item() for steps in (25, 50, 100, 200)]
    assert all(after < 0.6 * before for before, after in itertools.pairwise(errors))


def test_ode_maps_the_start_monotonically_to_quantiles() -> None:
    """The flow of a Gaussian is affine: a start of k deviations ends k deviations from the mean."""
    start = torch.randn(500, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    end = sample(
        exact_noise,
        (500, 1),
        SDE,
        sampler="ode",
        steps=1000,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    m, s = SDE.mean(torch.ones(1).double()), SDE.std(torch.ones(1).double())
    deviations = (start - m * MEAN) / (m.square() * STD**2 + s.square()).sqrt()
    assert_close(end, MEAN + STD * deviations, atol=2e-3, rtol=0)


def test_a_seed_fixes_a_sample() -> None:
    first, second, other = (
        sample(exact_noise, (5, 2), SDE, sampler="sde", steps=10, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_exact_noise_estimate_minimises_the_loss() -> None:
    """Its loss is the posterior variance of the noise, and any other estimate loses more on the same draw."""
    x0 = MEAN + STD * torch.randn(400_000, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def loss(estimate, reduction: str = "half_sum") -> float:
        generator = torch.Generator().manual_seed(6)
        return denoising_loss(estimate, x0, SDE, reduction=reduction, generator=generator).item()

    best = loss(exact_noise)
    t = torch.linspace(1e-5, 1, 20_001, dtype=torch.float64)
    m, s = SDE.mean(t), SDE.std(t)
    posterior = (m.square() * STD**2 / (m.square() * STD**2 + s.square())).mean().item()
    assert best == pytest.approx(posterior / 2, rel=0.02)
    assert loss(exact_noise, "mean") == pytest.approx(2 * best)
    assert loss(lambda x, t: 0.95 * exact_noise(x, t)) > best
    assert loss(lambda x, t: 1.05 * exact_noise(x, t)) > best


def test_half_sum_is_half_the_coordinates_times_the_mean() -> None:
    x0 = torch.randn(8, 51)

    def loss(reduction: str) -> Tensor:
        return denoising_loss(
            lambda x, _: 0 * x, x0, SDE, reduction=reduction, generator=torch.Generator().manual_seed(0)
        )

    assert_close(loss("half_sum"), 51 / 2 * loss("mean"))


def test_parts_of_a_batch_see_the_noise_of_the_whole() -> None:
    """Two copies of each row, as of two modalities: the loss of the batch is the mean of its parts' losses."""
    x0 = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[Tensor] = []

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.cat((x, t[:, None]), 1))
        return torch.zeros_like(x)

    def loss(rows: Tensor, part: Part | None) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return denoising_loss(estimate, rows.repeat(2, 1), SDE, generator=generator, part=part)

    whole = loss(x0, Part.whole(6))
    parts = [loss(x0[part.rows], part) for part in Part.whole(6).split(3)]
    assert_close(torch.stack(parts).mean(), whole)
    first, *others = seen
    assert torch.equal(first, torch.cat([torch.cat([o[:2] for o in others]), torch.cat([o[2:] for o in others])]))
    with pytest.raises(ValueError, match="whole copies of the 4 rows of `part`; got a float64 tensor"):
        denoising_loss(estimate, x0, SDE, part=Part(0, 4, 6))


def test_times_can_be_those_of_a_grid() -> None:
    def times(**options: int) -> Tensor:
        kept: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        estimate = lambda x, t: (kept.append(t), x)[1]  # noqa: E731
        denoising_loss(estimate, torch.zeros(20_000, 1, dtype=torch.float64), SDE, generator=generator, **options)
        return kept[0]

    grid = times(time_steps=10)
    assert torch.equal(grid.unique(), torch.arange(1, 11, dtype=torch.float64) / 10)
    assert (grid.mean() - 0.55).abs() < 0.01
    anywhere = times()
    assert 1e-5 <= anywhere.min() < 1e-3
    assert 0.999 < anywhere.max() <= 1


def preconditioned(sde=SDE, size: int = 3, spread: float = 1.0) -> ScoreNetwork:
    options = {"parameterisation": "preconditioned", "spread": spread, "sde": sde}
    return ScoreNetwork(size, 4, width=64, time_width=8, dropout=0.0, **options).double().eval()


def stating(network: ScoreNetwork, output: Tensor) -> ScoreNetwork:
    """The network with this output F, whatever it is given."""
    network.out.register_forward_hook(lambda *_: output)
    return network


@pytest.mark.parametrize("spread", [1.0, 0.2])
@pytest.mark.parametrize("name", SDES)
def test_preconditioned_network_of_output_zero_is_exact_for_gaussian_data_of_its_spread(name, spread) -> None:
    sde, x, t = make_sde(name), torch.randn(6, 3).double(), torch.rand(6).double()
    network = stating(preconditioned(sde, spread=spread), torch.zeros(6, 3).double())
    m, s = sde.mean(t)[:, None], sde.std(t)[:, None]
    exact = s * x / ((spread * m).square() + s.square())
    assert_close(network(x, t, network.project(torch.randn(6, 4).double())), exact)


@pytest.mark.parametrize("spread", [1.0, 0.2])
@pytest.mark.parametrize("name", SDES)
def test_preconditioned_target_has_unit_variance_and_its_error_the_same_weight_at_every_time(name, spread) -> None:
    """F* = (sigma x0 - s^2 m z) / norm recovers the noise, and the weighted loss is the squared error of F."""
    sde, draw = make_sde(name), torch.Generator().manual_seed(0)
    x0, z = torch.randn(2, 20_000, 3, generator=draw).double()
    for time in (1e-4, 0.1, 0.5, 1.0):
        t = torch.full((50,), time, dtype=torch.float64)
        m, s = sde.mean(t[:1]), sde.std(t[:1])
        of_noise = spread**2 * m
        wanted = (s * x0 - of_noise * z) / (of_noise.square() + s.square()).sqrt()
        assert wanted.var().item() == pytest.approx(1, rel=0.02)
        network = preconditioned(sde, spread=spread)
        projected = network.project(torch.zeros(50, 4).double())
        x_t, noise = (m * x0 + s * z)[:50], z[:50]
        assert_close(stating(network, wanted[:50])(x_t, t, projected), noise, atol=1e-8, rtol=1e-8)
        wrong = torch.randn(50, 3, generator=draw).double()
        error = stating(network, wanted[:50] + wrong)(x_t, t, projected) - noise
        assert_close(network.loss_weight(t)[:, None] * error.square(), wrong.square(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("time", [1e-3, 0.3, 1.0])
def test_layers_of_the_preconditioned_network_see_unit_variance(time: float) -> None:
    network, given = preconditioned(VE()), []
    network.stem.linear.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    t = torch.full((4000,), time, dtype=torch.float64)
    x_t = VE().mean(t)[:, None] * torch.randn(4000, 3).double() + VE().std(t)[:, None] * torch.randn(4000, 3).double()
    network(x_t, t, network.project(torch.zeros(4000, 4).double()))
    assert given[0].var().item() == pytest.approx(1, rel=0.1)


def test_the_network_of_gfpose_states_the_noise_and_weighs_it_alike() -> None:
    network = stating(ScoreNetwork(3, 4, width=32, time_width=8), torch.full((2, 3), 7.0))
    t = torch.tensor([1e-3, 1.0])
    assert torch.equal(network(torch.randn(2, 3), t, network.project(torch.randn(2, 4))), torch.full((2, 3), 7.0))
    assert torch.equal(network.loss_weight(t), torch.ones(2))


def test_the_loss_takes_a_weight_of_the_time() -> None:
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    def loss(**options: object) -> Tensor:
        return denoising_loss(lambda x, _: 0 * x, x0, SDE, generator=torch.Generator().manual_seed(1), **options)

    assert_close(loss(weight=lambda t: torch.full_like(t, 3.0)), 3 * loss())
    assert loss(weight=lambda t: (t > 0.5).float()) + loss(weight=lambda t: (t <= 0.5).float()) == pytest.approx(loss())


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_network_sees_time_and_condition(parameterisation: str) -> None:
    network = ScoreNetwork(3, 4, width=64, time_width=8, dropout=0.0, parameterisation=parameterisation)
    x, t, condition = torch.randn(6, 3), torch.rand(6), torch.randn(6, 4)
    noise = network(x, t, network.project(condition))
    assert not torch.allclose(network(x, 1 - t, network.project(condition)), noise)
    assert not torch.allclose(network(x, t, network.project(-condition)), noise)


def test_copies_of_a_condition_and_one_time_for_all_rows_need_no_repeats() -> None:
    network = preconditioned()
    x, t, condition = (value.double() for value in (torch.randn(6, 3), torch.tensor([0.3]), torch.randn(2, 4)))
    few = network(x, t, network.project(condition))
    assert_close(few, network(x, t.repeat(6), network.project(condition.repeat(3, 1))))


def test_time_embedding_has_the_documented_frequencies() -> None:
    embedded = sinusoidal_embedding(torch.tensor([0.5], dtype=torch.float64), 8)[0]
    angles = 999 * 0.5 / 1e4 ** (torch.arange(4, dtype=torch.float64) / 3)
    assert_close(embedded, torch.cat((angles.sin(), angles.cos())))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(exact_noise, (1, 1), SDE, sampler="eular"), "needs `sampler` to be one of"),
        (lambda: sample(exact_noise, (1, 1), SDE, steps=0), "`steps` >= 1; got 0"),
        (lambda: denoising_loss(exact_noise, torch.ones(2, 1), SDE, reduction="sum"), "needs `reduction` to be one of"),
        (lambda: make_sde("sub-vp"), "Did you mean 'subvp'"),
        (lambda: ScoreNetwork(3, 4, width=100), "multiple of 32 .* got 100"),
        (lambda: ScoreNetwork(3, 4, parameterisation="x0"), "needs `parameterisation` to be one of"),
        (lambda: ScoreNetwork(3, 4, parameterisation="preconditioned", spread=0), "needs `spread` .* > 0"),
        (lambda: ScoreNetwork(3, 4, width=64, time_width=7), "even and at least 4 .* got 7"),
    ],
)
def test_errors_say_what_was_needed_and_what_came(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
