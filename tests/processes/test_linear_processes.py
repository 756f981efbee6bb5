"""Linear processes with auxiliary variables against the shared case, and what is particular to each."""

from __future__ import annotations

import numpy as np
import torch
from linear_case import LinearProcessCase
from moments import dense_gamma, normal

from spatialdiff.covariance import CosineCovariance, TorusCovariance
from spatialdiff.kernels import Matern
from spatialdiff.processes import ALDA, CLD, MALDA, ConstantBeta, LinearBeta, LinearDiffusion


class Stationary(LinearProcessCase):
    """Processes with β linear from 0.5 to 6 on [0, 1.5], given by Q, D and a diagonal S."""

    is_stationary = True
    beta = LinearBeta(0.5, 6.0, horizon=1.5)
    Q: object
    D: object
    S: object

    def matrices(self, process, t):
        rate = 0.5 + 5.5 * t / 1.5
        Q, D, S = (np.asarray(m, dtype=float) for m in (self.Q, self.D, self.S))
        return -rate * (Q + D) @ np.linalg.inv(S), 2.0 * rate * D


class TestCLD(Stationary):
    variables = 2
    Q = ((0, -1), (1, 0))
    D = ((0, 0), (0, 2 * 0.3**0.5))
    S = ((1, 0), (0, 0.3))

    def make(self, gamma):
        return CLD(gamma, mass=0.3, beta=self.beta)

    def test_it_is_critically_damped(self):
        """Both eigenvalues of A are -1/√M: between oscillation and overdamping."""
        process = self.make(dense_gamma())
        eigenvalues = torch.linalg.eigvals(process.A)
        torch.testing.assert_close(
            eigenvalues, torch.full_like(eigenvalues, -(0.3**-0.5)), rtol=1e-6, atol=1e-6
        )


class TestALDA(Stationary):
    variables = 3
    Q = ((0, -0.5, 0), (0.5, 0, -1.5), (0, 1.5, 0))
    D = ((0, 0, 0), (0, 0, 0), (0, 0, 1.5))
    S = ((1, 0, 0), (0, 0.5, 0), (0, 0, 0.5))

    def make(self, gamma):
        return ALDA(gamma, mass=0.5, coupling=1.5, friction=3.0, beta=self.beta)


class MALDACase(Stationary):
    def make(self, gamma):
        return MALDA(gamma, self.variables, mass=0.3, beta=self.beta)

    @property
    def Q(self):
        ones = np.ones((self.variables, self.variables))
        return np.tril(ones, -1) - np.triu(ones, 1)

    @property
    def D(self):
        return np.diag([0.0] + [2.0 * 0.3**0.5] * (self.variables - 1))

    @property
    def S(self):
        return np.diag([1.0] + [0.3] * (self.variables - 1))


class TestMALDA3(MALDACase):
    variables = 3


class TestMALDA4(MALDACase):
    variables = 4


class TestFromStationary(Stationary):
    """Q, D and S drawn once; D singular."""

    variables = 4
    Q = 0.7 * (normal(4, 4, seed=1) - normal(4, 4, seed=1).T).numpy()
    D = (normal(4, 2, seed=2) @ normal(4, 2, seed=2).T / 2).numpy()
    S = (normal(4, 6, seed=3) @ normal(4, 6, seed=3).T / 6).numpy()

    def make(self, gamma):
        return LinearDiffusion.from_stationary(
            gamma, self.Q.tolist(), self.D.tolist(), self.S.tolist(), beta=self.beta
        )

    def test_the_law_is_what_was_asked_for(self):
        process = self.make(dense_gamma())
        torch.testing.assert_close(process.stationary, torch.from_numpy(self.S), rtol=1e-10, atol=1e-12)


class TestUnderdampedOscillator(LinearProcessCase):
    """Noise on the velocity, started at rest; given by A and G."""

    variables = 2
    is_stationary = True
    A = np.array([[0.0, 1.0], [-16.0, -1.0]])
    G = np.diag([0.0, 2.0])

    def make(self, gamma):
        return LinearDiffusion(
            gamma, self.A.tolist(), self.G.tolist(), beta=ConstantBeta(1.5, 2.0), initial=[0.0]
        )

    def matrices(self, process, t):
        return 1.5 * self.A, 1.5 * self.G


class TestTwiceIntegratedBrownianMotion(LinearProcessCase):
    """No stationary law, and noise of order b⁵ in the data."""

    variables = 3

    def make(self, gamma):
        return LinearDiffusion(
            gamma,
            [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
            torch.diag(torch.tensor([0.0, 0.0, 1.0])),
            beta=ConstantBeta(1.0, 2.0),
            initial=[[0.5, 0.2], [0.2, 0.3]],
        )

    def matrices(self, process, t):
        return np.array([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]]), np.diag([0.0, 0.0, 1.0])


class TestGeneralScalar(LinearProcessCase):
    """K = 1 by the general way is Ornstein–Uhlenbeck."""

    is_stationary = True

    def make(self, gamma):
        return LinearDiffusion(gamma, [[-0.7]], [[1.3]], beta=ConstantBeta(2.0, 1.5))

    def matrices(self, process, t):
        return np.array([[-1.4]]), np.array([[2.6]])


class TestOneCovariancePerVariable(LinearProcessCase):
    """Variables of different spatial covariance, with noise in common: it differs from mode to mode."""

    A = np.array([[-0.3, 3.0], [-1.0, -2.0]])
    G = np.array([[0.4, 0.3], [0.3, 1.0]])

    variables = 2
    modal = True
    channel_matrix = False
    is_stationary = True

    def others(self, gamma):
        kernel = Matern(nu=0.5, lengthscale=1.1, variance=0.6)
        structure = CosineCovariance if isinstance(gamma, CosineCovariance) else TorusCovariance
        trained = next(gamma.parameters()).requires_grad
        return structure(kernel, gamma.domain).double().requires_grad_(trained)

    def make(self, gamma):
        return LinearDiffusion(
            (gamma, self.others(gamma)),
            self.A.tolist(),
            self.G.tolist(),
            beta=LinearBeta(0.5, 6.0, horizon=1.5),
        )

    def whitened(self, process, gamma):
        """In units of Γ₁ the velocity keeps the ratio Γ₂/Γ₁."""
        return LinearDiffusion(gamma, process.A, process.G, beta=process.schedule, basis=process.basis)

    def matrices(self, process, t):
        rate = 0.5 + 5.5 * t / 1.5
        first, second = process.covariance, process.covariances[0]
        ratio = (second.spatial_eigenvalues() / first.spatial_eigenvalues()).detach().sqrt()
        relative = torch.stack([torch.ones_like(ratio), ratio], -1).numpy()
        diffusion = relative[..., :, None] * self.G * relative[..., None, :]
        return np.broadcast_to(rate * self.A, diffusion.shape), rate * diffusion

    def test_each_variable_has_its_own_covariance(self):
        """In the stationary law of two variables that nothing couples, and of the start."""
        gamma = self.small()
        other = self.others(gamma)
        process = LinearDiffusion(
            (gamma, other),
            [[-0.5, 0.0], [0.0, -1.0]],
            [[1.0, 0.0], [0.0, 1.6]],
            beta=ConstantBeta(1.0, 40.0),
            initial=[0.7],
        )
        law = self.covariance(process, process.marginal(40.0)[1])
        torch.testing.assert_close(law[:6, :6], gamma.to_dense(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(law[6:, 6:], 0.8 * other.to_dense(), rtol=1e-10, atol=1e-12)
        assert not law[:6, 6:].any()
        start = self.covariance(process, process.marginal(0.0)[1])
        torch.testing.assert_close(start[6:, 6:], 0.7 * other.to_dense(), rtol=1e-10, atol=1e-12)

    def test_velocity_of_its_own_covariance(self):
        """With noise in the velocity only, CLD's state does not know of the first covariance at all."""
        gamma = self.small()
        process, alike = CLD((gamma, self.others(gamma))), CLD(self.others(gamma))
        for t in (0.3, 1.0):
            torch.testing.assert_close(
                self.covariance(process, process.marginal(t)[1]),
                torch.kron(alike.marginal(t)[1], alike.covariance.to_dense()),
                rtol=1e-9,
                atol=1e-11,
            )
