r"""The rotation that is left of a linear flow in the coordinates of its covariance; see ``flow``.

.. math:: \dot O = \Omega O, \qquad \dot c = \Omega c + L^{-1}\kappa\,g

are integrated in the logarithm of the distance to the data end, in which Ω is regular, by Gauss–Legendre
collocation: it keeps O orthogonal (Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*, IV.2) and
has order 10 with five nodes. The number of panels is doubled until nothing changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.processes.law import Law
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.small_matrices import forward_solve, updated

NODES = 5
#: the first panels: width in log-distance, angle of rotation, and at how many places it is looked at
WIDTH, TURN, PROBES = 1.5, 1.5, 129
#: doublings of the panels before giving up
DOUBLINGS = 7
#: share of the way, measured from the data end, that a step to the end leaves out: O is constant there
NOISE_REST, BRIDGE_REST = 1e-14, 1e-8


class RotatingFrame:
    """The rotation of a law under data variances ρ, as a function of the log-distance to the data."""

    def __init__(self, law: Law, ratio: Tensor, frame: str = "endpoint") -> None:
        self.law = law
        self.ratio = ratio
        self.frame = frame
        modes = 0 if law.basis is None else len(law.basis.modes)
        self.extra = max(0, ratio.ndim - modes)

    def lift(self, coefficient: Tensor) -> Tensor:
        """Axes for those of ρ that are not modes, after the axis of times: ``(T, …, *rest)``."""
        return coefficient.reshape(coefficient.shape[0], *[1] * self.extra, *coefficient.shape[1:])

    def step(self, t: Tensor, s: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """M ``(…, K, K)`` and W ``(…, K)`` from t to s."""
        ends = torch.stack([t, s])
        factors, information = self.factor(ends)
        far, near = (ends - self.law.end_time).abs()
        if bool(far == near):
            eye = torch.eye(self.law.variables, dtype=factors.dtype, device=factors.device)
            return eye.expand_as(factors[0]), torch.zeros_like(factors[0][..., 0])
        if isinstance(self.law, NoiseProcess):
            stop = torch.maximum(near, NOISE_REST * far)
        else:
            stop = torch.maximum(
                near, torch.minimum(1e-3 * far, far.new_tensor(BRIDGE_REST * self.law.horizon))
            )
        rotation, residual = self.integrate(far.log(), stop.log(), information[0], tolerance)
        unit = torch.eye(self.law.variables, dtype=factors.dtype, device=factors.device)
        M = factors[1] @ rotation @ forward_solve(factors[0], unit)
        W = (factors[1] @ residual)[..., 0]
        if self.frame == "endpoint":
            load = self.ratio * information[0]
            phi = self.lift(self.law.marginal(ends)[0])
            direct = (1.0 + load)[..., None] * (phi[1] - (M @ phi[0][..., None])[..., 0])
            W = torch.where((load < 1.0)[..., None], direct, W)
        return M, W

    def factor(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """L ``(T, …, K, K)``, ``L Lᵀ = ρφφᵀ + Σ``, and I ``(T, …)``, at times ``(T,)``."""
        phi = self.lift(self.law.marginal(t)[0])
        root = self.lift(self.law.root(t))
        return updated(root, self.ratio.sqrt()[..., None] * phi), self.lift(self.law.information(t))

    def integrate(
        self, start: Tensor, stop: Tensor, information: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """O ``(…, K, K)`` and ``L_s⁻¹ W`` ``(…, K, 1)`` between two log-distances to the data end."""
        corners = self.corners(start, stop)
        before: Tensor | None = None
        change = math.inf
        for _ in range(DOUBLINGS):
            now = self.panels(start, stop, corners, information)
            if before is not None:
                with torch.no_grad():
                    size = torch.cat([torch.ones_like(now[..., :-1]), now[..., -1:].abs()], dim=-1)
                    size = size.amax(-2, keepdim=True).clamp(min=1.0)
                    change = float(((now - before).abs() / size).max())
                if change < tolerance:
                    return now[..., :-1], now[..., -1:]
            middle = 0.5 * (corners[1:] + corners[:-1])
            before, corners = now, torch.cat([corners, middle]).sort().values
        raise RuntimeError(
            f"the rotation of the Gaussian flow of {type(self.law).__name__} between log-distances "
            f"{float(start):.4g} and {float(stop):.4g} to the data changed by {change:.3g} at the last of "
            f"{DOUBLINGS} doublings; needed {tolerance:.3g}: pass a larger tolerance, or use shorter steps"
        )

    @torch.no_grad()
    def corners(self, start: Tensor, stop: Tensor) -> Tensor:
        """Ends of the first panels as shares of the way: at most TURN rotated and WIDTH wide, each."""
        length = (stop - start).abs()
        if float(length) < 0.3:  # the doubling sees to a fast rotation
            return torch.tensor([0.0, 1.0], dtype=torch.float64, device=start.device)
        probes = min(PROBES, 3 + math.ceil(8.0 * float(length)))
        shares = torch.linspace(0.0, 1.0, probes, dtype=torch.float64, device=start.device)
        few = self
        if self.law.basis is None and self.ratio.numel() > 5:
            chosen = (
                self.ratio.detach().flatten().quantile(self.ratio.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
            )
            few = RotatingFrame(self.law, chosen, self.frame)
        omega, _ = few.rates(start + (stop - start) * shares, None)
        speed = omega.square().sum((-2, -1)).reshape(probes, -1).amax(-1).sqrt()
        density = length * (1.0 / WIDTH + speed / TURN)
        total = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, shares)])
        count = max(1, math.ceil(float(total[-1])))
        wanted = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64, device=start.device) * total[-1]
        index = torch.searchsorted(total, wanted.contiguous()).clamp(1, probes - 1)
        inside = (wanted - total[index - 1]) / (total[index] - total[index - 1])
        found = shares[index - 1] + inside * (shares[index] - shares[index - 1])
        found[0], found[-1] = 0.0, 1.0
        return found

    def panels(self, start: Tensor, stop: Tensor, corners: Tensor, information: Tensor) -> Tensor:
        """``[O, c]`` ``(…, K, K + 1)`` by Gauss–Legendre collocation on panels between ``corners``."""
        nodes, weights, stages = gauss_legendre(NODES, start.device)
        panels = len(corners) - 1
        widths = corners.diff()
        at = start + (stop - start) * (corners[:-1, None] + widths[:, None] * nodes).reshape(-1)
        omega, force = self.rates(at, information)
        rates = torch.cat([omega, force], dim=-1)
        shape, size = rates.shape[1:-2], rates.shape[-2]
        rates = rates.reshape(panels, NODES, *shape, size, size + 1).movedim(1, -3)
        rates = rates * ((stop - start) * widths).reshape(-1, *[1] * (len(shape) + 3))
        generator = rates[..., :-1]
        system = torch.eye(NODES * size, dtype=torch.float64, device=start.device) - (
            generator[..., :, :, None, :] * stages[:, None, :, None]
        ).reshape(panels, *shape, NODES * size, NODES * size)
        slopes = torch.linalg.solve(system, rates.reshape(panels, *shape, NODES * size, size + 1))
        slopes = slopes.reshape(panels, *shape, NODES, size, size + 1)
        steps = (weights[:, None, None] * slopes).sum(-3)
        unit = torch.eye(size, size + 1, dtype=torch.float64, device=start.device)
        result = unit.expand(*shape, size, size + 1)
        for step in steps:
            result = result + step[..., :-1] @ result + step * (1.0 - unit.sum(0))
        return result

    def rates(self, at: Tensor, information: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ω ``(T, …, K, K)`` and the force ``L⁻¹κ/…`` ``(T, …, K, 1)`` per unit of log-distance."""
        law = self.law
        distance = at.exp()
        sign = 1.0 if law.start_time > law.end_time else -1.0
        t = law.end_time + sign * distance
        speed = (sign * distance).reshape(-1, *[1] * (self.extra + 2))
        if law.basis is not None:
            speed = speed.reshape(*speed.shape, *[1] * len(law.basis.modes))
        factor, level = self.factor(t)
        drift, spread, pull = (self.lift(part) for part in dynamics(law, t))
        # Σ⁻¹φ, from the weights of the statistic
        weight = self.lift(law.alpha(t) / law.variance(t))
        score = self.lift(law.statistic(t)) * weight[..., None]
        kappa = pull - 0.5 * spread @ score[..., None]
        load = 1.0 + self.ratio * level
        if self.frame == "endpoint" and information is not None:
            share = (1.0 + self.ratio * information) / load
        else:
            share = load.rsqrt()
        inner = forward_solve(factor, drift @ factor)
        inner = inner + 0.5 * forward_solve(factor, forward_solve(factor, spread).mT)
        if law.start_time < law.end_time:
            white = forward_solve(factor, self.lift(law.marginal(t)[0])[..., None])
            inner = inner + self.ratio[..., None, None] * forward_solve(factor, pull) @ white.mT
        force = forward_solve(factor, kappa)
        skew = inner.triu(1) - inner.triu(1).mT
        return speed * skew, speed * share[..., None, None] * force


def dynamics(law: Law, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E, Q ``(*t, [modes], K, K)`` and a ``(*t, [modes], K, 1)``: the law's SDE, ``du = (E u + a D) dt + …``.

    For a noise process the drift of the noising SDE (a = 0), for a pinned one that of the bridge mixture.
    Raises ``TypeError`` where neither is known.
    """
    if isinstance(law, NoiseProcess):
        drift = law.drift_matrix(t)
        return drift, law.diffusion_matrix(t), torch.zeros_like(drift[..., :1])
    bridge = getattr(law, "bridge", None)
    if bridge is None or not hasattr(bridge, "drift_matrices"):
        raise TypeError(
            f"{type(law).__name__} has {law.variables} variables and is neither a NoiseProcess nor the law "
            "of a LinearBridge: the matrices of its drift are not known"
        )
    drift, gain = bridge.drift_matrices(t)
    return drift, bridge.diffusion_matrix(t), gain[..., :1]


def gauss_legendre(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights and collocation matrix ``A_ij = ∫_0^{c_i} l_j`` on [0, 1], float64."""
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(count)
    nodes = torch.as_tensor(0.5 * (points + 1.0), dtype=torch.float64, device=device)
    powers = torch.arange(count, dtype=torch.float64, device=device)
    vandermonde = nodes[:, None] ** powers
    integrals = nodes[:, None] ** (powers + 1.0) / (powers + 1.0)
    stages = torch.linalg.solve(vandermonde.mT, integrals.mT).mT
    return nodes, torch.as_tensor(0.5 * weights, dtype=torch.float64, device=device), stages
