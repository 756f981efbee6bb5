"""Linear processes refuse what is none: each message says what was given and what is needed."""

from __future__ import annotations

import pytest
import torch
from moments import dense_gamma, normal, torus_gamma

from spatialdiff.covariance import CosineCovariance, TorusCovariance, white
from spatialdiff.domains import Grid
from spatialdiff.kernels import Exponential
from spatialdiff.processes import (
    ALDA,
    CLD,
    MALDA,
    VP,
    ConstantBeta,
    Cosine,
    FrequencyVP,
    HeatDissipation,
    LearnedDiffusion,
    LinearBridge,
    LinearDiffusion,
    Rectified,
    SpectralDiffusion,
    StochasticHeat,
)

F64 = torch.float64
STABLE = [[-1.0, 0.5], [-0.5, -1.0]]
NOISE = [[1.0, 0.0], [0.0, 1.0]]
SKEW = [[0.0, -1.0], [1.0, 0.0]]
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]


def other(grid=(6, 4)):
    return TorusCovariance(Exponential(1.1, 0.5), Grid(grid, periodic=True)).double()


@pytest.mark.parametrize(
    ("A", "G", "message"),
    [
        ([[0.2, 1.0], [-1.0, 0.1]], NOISE, "A is unstable: an eigenvalue has real part 0.15"),
        ([[1.0]], [[1.0]], "A is unstable: an eigenvalue has real part 1"),
        (STABLE, [[1.0, 2.0], [2.0, 1.0]], "G is not positive semi-definite: its smallest eigenvalue is -1"),
        (STABLE, [[1.0, 0.5], [0.0, 1.0]], "G is not symmetric"),
        (STABLE, [[1.0]], "A acts on 2 variables and G on 1; they must agree"),
        ([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], NOISE, r"A has shape \(2, 3\)"),
        ([[-1.0, float("nan")], [0.0, -1.0]], NOISE, "A holds values that are not finite"),
        ([[-1.0, 0.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 0.0]], "the noise does not reach all of them"),
    ],
)
def test_matrices(A, G, message):
    with pytest.raises(ValueError, match=message):
        LinearDiffusion(dense_gamma(), A, G, beta=ConstantBeta(1.0, 5.0), initial=[0.0] * (len(A) - 1))


@pytest.mark.parametrize(
    ("Q", "D", "S", "message"),
    [
        ([[0.0, 1.0], [1.0, 0.0]], IDENTITY, IDENTITY, "Q is not skew-symmetric; write it as M - Mᵀ"),
        (SKEW, [[1.0, 2.0], [2.0, 1.0]], IDENTITY, "D is not positive semi-definite.*write it as L Lᵀ"),
        (SKEW, [[1.0, 0.3], [0.0, 1.0]], IDENTITY, "D is not symmetric"),
        (
            SKEW,
            IDENTITY,
            [[1.0, 0.0], [0.0, 0.0]],
            "S is not positive definite: .* eigenvalue is 0",
        ),
        (
            SKEW,
            IDENTITY,
            [[1.0, 2.0], [2.0, 1.0]],
            "S is not positive definite: .* eigenvalue is -1",
        ),
        (SKEW, IDENTITY, [[1.0, 0.5], [0.0, 1.0]], "S is not symmetric"),
        (SKEW, IDENTITY, [[1.0]], "Q, D and S act on 2, 2 and 1 variables"),
    ],
)
def test_stationary_laws(Q, D, S, message):
    with pytest.raises(ValueError, match=message):
        LinearDiffusion.from_stationary(dense_gamma(), Q, D, S)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], r"initial has shape \(2, 2\); V_0 is \(1, 1\), or 1 variances"),
        ([-0.5], "initial is not a covariance of 1 variables"),
    ],
)
def test_initial_laws(initial, message):
    with pytest.raises(ValueError, match=message):
        CLD(dense_gamma(), initial=initial)


def test_parameters_of_the_named_processes():
    gamma = dense_gamma()
    for make, name in (
        (lambda: CLD(gamma, mass=0.0), "mass was 0"),
        (lambda: ALDA(gamma, friction=-1.0), "friction was -1"),
        (lambda: ALDA(gamma, coupling=float("inf")), "coupling was inf"),
        (lambda: MALDA(gamma, mass=float("nan")), "mass was nan"),
    ):
        with pytest.raises(ValueError, match=name):
            make()
    with pytest.raises(ValueError, match="variables=1; an auxiliary variable needs at least 2"):
        MALDA(gamma, variables=1)


def test_modes_need_a_fast_basis_and_their_shape():
    A = torch.tensor(STABLE, dtype=F64).expand(6, 3, 2, 2)
    G = torch.tensor(NOISE, dtype=F64)
    process = LinearDiffusion(torus_gamma(), A, G, beta=ConstantBeta(1.0))
    assert process.basis == torus_gamma().basis
    with pytest.raises(ValueError, match="is diagonal in no fast basis; build Γ with method='torus'"):
        LinearDiffusion(dense_gamma(), A, G, beta=ConstantBeta(1.0))
    with pytest.raises(ValueError, match=r"A has shape \(4, 3, 2, 2\); for .* it is \(6, 3, 2, 2\)"):
        LinearDiffusion(torus_gamma(), A[:4], G, beta=ConstantBeta(1.0))


def test_one_covariance_per_variable():
    gamma = torus_gamma()
    with pytest.raises(ValueError, match="2 covariances for 3 variables; give one, or one for each"):
        MALDA((gamma, other()), variables=3)
    with pytest.raises(ValueError, match="one covariance per variable needs covariances without channels"):
        CLD((torus_gamma(channels=2), torus_gamma(channels=2)))
    with pytest.raises(ValueError, match="all of them white: give one, and scale G instead"):
        CLD((white(Grid((6, 4))), white(Grid((6, 4)))))
    with pytest.raises(ValueError, match="is diagonal in no fast basis"):
        CLD((dense_gamma(), dense_gamma()))
    with pytest.raises(ValueError, match="and Γ lives on"):
        CLD((gamma, other((4, 4))))
    cosine = CosineCovariance(Exponential(1.1, 0.5), Grid((6, 4), periodic=True)).double()
    with pytest.raises(ValueError, match="has coefficients for the modes of"):
        CLD((gamma, cosine))


def test_a_path_needs_its_draws():
    process = CLD(torus_gamma())
    x, times = normal(2, 1, 6, 4), torch.tensor([0.2, 0.5], dtype=F64)
    with pytest.raises(ValueError, match="white has 2 draws; this path needs 3, one for each time"):
        process.simulate(x, times, white=normal(2, 2, 2, 6, 4))
    with pytest.raises(ValueError, match="times of this process lie in"):
        process.simulate(x, [0.5, 2.0])
    with pytest.raises(ValueError, match="must be a non-empty, non-decreasing vector"):
        process.simulate(x, [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda gamma: CLD(3.0), r"CLD needs a Covariance, or one for each variable; got 3\.0"),
        (lambda gamma: CLD(()), r"CLD needs a Covariance, or one for each variable; got \(\)"),
        (lambda gamma: MALDA([gamma, "no", gamma]), "MALDA needs a Covariance.*got str among them"),
        (lambda gamma: LearnedDiffusion((gamma, gamma)), "LearnedDiffusion needs one Covariance, got tuple"),
    ],
)
def test_what_is_no_covariance(make, message):
    with pytest.raises(TypeError, match=message):
        make(torus_gamma())


def test_learned_numbers():
    with pytest.raises(ValueError, match="mass was -1; it must be a positive, finite number"):
        LearnedDiffusion(torus_gamma(), mass=-1)
    with pytest.raises(ValueError, match=r"floor was 0\.0"):
        LearnedDiffusion(torus_gamma(), floor=0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda gamma: LinearDiffusion(gamma, [[-1.0]], [[0.0]]),
        lambda gamma: LinearDiffusion(gamma, [[-1.0, 0.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 0.0]]),
        # the mode of eigenvalue 0 gets no noise
        lambda gamma: SpectralDiffusion(gamma, lambda v: -v - 1.0, lambda v: v),
    ],
)
def test_noise_that_does_not_reach_a_variable(make):
    with pytest.raises(ValueError, match="the noise does not reach all of them"):
        make(torus_gamma())


@pytest.mark.parametrize(
    "make",
    [
        lambda gamma: StochasticHeat(gamma, 1.0, 1e-5),
        lambda gamma: LinearDiffusion(gamma, [[-1e-6]], [[1.0]]),
        lambda gamma: LinearDiffusion.from_stationary(gamma, [[0.0]], [[1.0]], [[3e4]]),
    ],
)
def test_a_default_schedule_of_a_wide_stationary_law(make):
    """The stationary law is so wide that the data are little beside it from the start: still a schedule."""
    process = make(torus_gamma())
    assert float(process.information(process.horizon).max()) < 2e-3


@pytest.mark.parametrize("make", [Cosine, Rectified, lambda gamma: HeatDissipation(gamma, 1.0)])
def test_a_bridge_needs_a_process_that_keeps_its_state(make):
    with pytest.raises(ValueError, match="keeps nothing of its state up to its horizon 1"):
        LinearBridge(make(torus_gamma()))


@pytest.mark.parametrize("make", [VP, CLD, lambda gamma: FrequencyVP(gamma, lambda v: 1.0 + v)])
def test_states_times_and_data_that_do_not_fit(make):
    law = make(torus_gamma())
    data, t = normal(2, 1, 6, 4), torch.tensor([0.3, 0.4], dtype=F64)
    state = normal(2, law.variables, 6, 4)
    for times in (torch.tensor([0.3, 0.4, 0.5], dtype=F64), torch.tensor([[0.3, 0.4]], dtype=F64)):
        with pytest.raises(ValueError, match=r"one time per batch entry"):
            law.reduce_noise(state, times) if law.variables > 1 else law.mean(data, times)
    for fn in (law.gamma_score, law.score, law.noise, law.variable_noise):
        with pytest.raises(ValueError, match=r"the state has shape \(2, 3, 6, 4\)|needs a multiple"):
            fn(normal(2, 3, 6, 4), t, data)
        fn(state, t, data)
