r"""The rotation that is left of a linear flow in the coordinates of its covariance; see ``flow``.

.. math:: \dot O = \Omega O, \qquad \dot c = \Omega c + L^{-1}\kappa\,g

are integrated in the logarithm of the distance to the data end, in which Ω is regular, by Gauss–Legendre
collocation: it keeps O orthogonal (Hairer, Lubich, Wanner 2006, *Geometric Numerical Integration*, IV.2) and
has order 10 with five nodes. Panels are halved until nothing changes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.processes.law import Law
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.small_matrices import forward_solve, updated

NODES = 5
#: the first panels: width in log-distance where the rotation is fast, angle of rotation, and at how many
#: places it is looked at
WIDTH, TURN, PROBES = 1.5, 1.5, 129
#: the most numbers in the systems that are solved at once
CHUNK = 1 << 24
#: doublings of the panels before giving up
DOUBLINGS = 7
#: how much halving a panel may change it, in tolerances: the halves err 2⁻¹⁰ as much
SAFE = 10.0
#: below this ρI the endpoint form of W does not cancel, and its integral is not needed
DIRECT = 1.0
#: share of the way, measured from the data end, that a step to the end leaves out: O is constant there
NOISE_REST, BRIDGE_REST = 1e-14, 1e-8


@dataclass(frozen=True)
class Panels:
    """Pieces of steps: the number of the step, where the piece begins and how wide it is, as shares of it."""

    owner: Tensor
    first: Tensor
    width: Tensor

    def halved(self) -> Panels:
        """Two for each, in order."""
        width = 0.5 * self.width.repeat_interleave(2)
        second = torch.arange(len(width), device=width.device) % 2
        first = self.first.repeat_interleave(2) + second * width
        return Panels(self.owner.repeat_interleave(2), first, width)

    def chosen(self, which: Tensor) -> Panels:
        """Those of a mask."""
        return Panels(self.owner[which], self.first[which], self.width[which])


class RotatingFrame:
    """The rotation of a law under data variances ρ, as a function of the log-distance to the data.

    All steps of a path are integrated together: what costs is the number of operations, not their size.
    """

    def __init__(self, law: Law, ratio: Tensor, frame: str = "endpoint") -> None:
        self.law = law
        self.ratio = ratio
        self.frame = frame
        modes = 0 if law.basis is None else len(law.basis.modes)
        self.extra = max(0, ratio.ndim - modes)

    def lift(self, coefficient: Tensor) -> Tensor:
        """Axes for those of ρ that are not modes, after the axis of times: ``(T, …, *rest)``."""
        return coefficient.reshape(coefficient.shape[0], *[1] * self.extra, *coefficient.shape[1:])

    def steps(self, times: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """M ``(T - 1, …, K, K)`` and W ``(T - 1, …, K)`` between times ``(T,)``, one after the other."""
        factors, information = self.factor(times)
        unit = torch.eye(self.law.variables, dtype=factors.dtype, device=factors.device)
        distance = (times - self.law.end_time).abs()
        far, near = distance[:-1], distance[1:]
        still = far == near
        if isinstance(self.law, NoiseProcess):
            stops = torch.maximum(near, NOISE_REST * far)
        else:
            stops = torch.maximum(
                near, torch.minimum(1e-3 * far, far.new_tensor(BRIDGE_REST * self.law.horizon))
            )
        starts, stops = (torch.where(still, 1.0, ends).log() for ends in (far, stops))
        load = self.ratio * torch.where(
            still.reshape(-1, *[1] * (information.ndim - 1)), 0.0, information[:-1]
        )
        rotation, residual = self.integrate(starts, stops, load, tolerance)
        at_rest = still.reshape(-1, *[1] * (factors.ndim - 1))
        start = torch.where(at_rest, unit, factors[:-1])
        M = torch.where(at_rest, unit, factors[1:] @ rotation @ forward_solve(start, unit))
        W = (factors[1:] @ residual)[..., 0]
        if self.frame == "endpoint":
            phi = self.lift(self.law.marginal(times)[0])
            direct = (1.0 + load)[..., None] * (phi[1:] - (M @ phi[:-1, ..., None])[..., 0])
            W = torch.where((load < DIRECT)[..., None], direct, W)
        return M, torch.where(at_rest[..., 0], 0.0, W)

    def factor(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """L ``(T, …, K, K)``, ``L Lᵀ = ρφφᵀ + Σ``, and I ``(T, …)``, at times ``(T,)``."""
        phi = self.lift(self.law.marginal(t)[0])
        root = self.lift(self.law.root(t))
        return updated(root, self.ratio.sqrt()[..., None] * phi), self.lift(self.law.information(t))

    def integrate(
        self, starts: Tensor, stops: Tensor, load: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """O ``(T, …, K, K)`` and ``L_s⁻¹ W`` ``(T, …, K, 1)`` between T pairs of log-distances."""
        scale, asked = torch.ones_like(load), torch.ones_like(load)
        if self.frame == "endpoint":
            scale, asked = 1.0 + load, (load >= DIRECT).to(load)
        panels = self.corners(starts, stops)
        whole = self.moves(starts, stops, panels, scale)
        with torch.no_grad():  # W is the sum over the panels, and asked for as a share of it
            forced = whole[..., -1].abs().amax(-1)
            total = torch.zeros_like(forced[: len(starts)]).index_add(0, panels.owner, forced)
            share = (asked / total.clamp(min=1.0))[..., None, None]
            turned = torch.ones_like(share).expand(*share.shape[:-1], self.law.variables)
            weight = torch.cat([turned, share], dim=-1)
        kept: list[tuple[Panels, Tensor]] = []
        change = weight.new_zeros(1)
        for _ in range(DOUBLINGS):
            panels = panels.halved()
            halves = self.moves(starts, stops, panels, scale)
            with torch.no_grad():
                change = (followed(halves[::2], halves[1::2]) - whole).abs() * weight[panels.owner[::2]]
                change = change.reshape(len(change), -1).amax(-1)
            rough = (change > SAFE * tolerance).repeat_interleave(2)
            kept.append((panels.chosen(~rough), halves[~rough]))
            panels, whole = panels.chosen(rough), halves[rough]
            if not len(whole):
                return self.joined(kept, len(starts))
        slow = int(panels.owner[0])
        raise RuntimeError(
            f"the rotation of the Gaussian flow of {type(self.law).__name__} between log-distances "
            f"{float(starts[slow]):.4g} and {float(stops[slow]):.4g} to the data changed by "
            f"{float(change.max()):.3g} at the last of {DOUBLINGS} doublings; needed {SAFE * tolerance:.3g}: "
            "pass a larger tolerance, or use shorter steps"
        )

    def joined(self, kept: list[tuple[Panels, Tensor]], steps: int) -> tuple[Tensor, Tensor]:
        """O and c of every step, from its panels one after the other."""
        owner = torch.cat([panels.owner for panels, _ in kept])
        first = torch.cat([panels.first for panels, _ in kept])
        moves = torch.cat([move for _, move in kept])
        order = (owner + 0.5 * first).argsort()
        found = []
        for each in moves[order].split(owner.bincount(minlength=steps).tolist()):
            done = each[0]
            for move in each[1:]:
                done = followed(done, move)
            found.append(done)
        both = torch.stack(found)
        unit = torch.eye(self.law.variables, dtype=torch.float64, device=both.device)
        return both[..., :-1] + unit, both[..., -1:]

    @torch.no_grad()
    def corners(self, starts: Tensor, stops: Tensor) -> Panels:
        """The first panels of every step: each rotates by TURN at most, and is the wider the less happens."""
        lengths = (stops - starts).abs()
        counts = [min(PROBES, 3 + math.ceil(8.0 * float(length))) for length in lengths]
        shares = [torch.linspace(0.0, 1.0, n, dtype=torch.float64, device=starts.device) for n in counts]
        few = self
        if self.law.basis is None and self.ratio.numel() > 5:
            chosen = (
                self.ratio.detach().flatten().quantile(self.ratio.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
            )
            few = RotatingFrame(self.law, chosen, self.frame)
        places = [starts[i] + (stops[i] - starts[i]) * share for i, share in enumerate(shares)]
        omega, _ = few.rates(torch.cat(places))
        speeds = omega.square().sum((-2, -1)).reshape(len(omega), -1).amax(-1).sqrt().split(counts)
        ends = []
        for length, share, speed in zip(lengths, shares, speeds, strict=True):
            # the error of a panel of width w is speed·w^(2·NODES)
            calm = speed.clamp(max=1.0) ** (0.5 / NODES)
            density = length * (calm / WIDTH + speed / TURN)
            total = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, share)])
            count = max(1, math.ceil(float(total[-1])))
            wanted = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64, device=starts.device)
            wanted = wanted * total[-1]
            index = torch.searchsorted(total, wanted.contiguous()).clamp(1, len(share) - 1)
            inside = (wanted - total[index - 1]) / (total[index] - total[index - 1]).clamp(min=1e-300)
            found = share[index - 1] + inside * (share[index] - share[index - 1])
            found[0], found[-1] = 0.0, 1.0
            ends.append(found)
        owner = torch.cat([torch.full_like(each[1:], i, dtype=torch.long) for i, each in enumerate(ends)])
        return Panels(
            owner, torch.cat([each[:-1] for each in ends]), torch.cat([each.diff() for each in ends])
        )

    def moves(self, starts: Tensor, stops: Tensor, panels: Panels, scale: Tensor) -> Tensor:
        """``[O - 1, c]`` of every panel, ``(P, …, K, K + 1)``, by Gauss–Legendre collocation."""
        nodes, weights, stages = gauss_legendre(NODES, starts.device)
        way = (stops - starts)[panels.owner]
        share = panels.first[:, None] + panels.width[:, None] * nodes
        places = starts[panels.owner, None] + way[:, None] * share
        each = max(1, CHUNK // ((NODES * self.law.variables) ** 2 * self.values()))
        parts = zip(places.split(each), (way * panels.width).split(each), strict=True)
        found = torch.cat([self.collocate(at, widths, weights, stages) for at, widths in parts])
        forced = scale[panels.owner][..., None, None] * found[..., -1:]
        return torch.cat([found[..., :-1], forced], dim=-1)

    def values(self) -> int:
        """How many matrices there are at one time."""
        modes = 1 if self.law.basis is None else math.prod(self.law.basis.modes)
        return max(modes, self.ratio.numel())

    def collocate(self, at: Tensor, widths: Tensor, weights: Tensor, stages: Tensor) -> Tensor:
        """``[O - 1, c]`` of every panel, ``(P, …, K, K + 1)``, from places ``(P, NODES)``."""
        omega, force = self.rates(at.reshape(-1))
        rates = torch.cat([omega, force], dim=-1)
        panels, shape, size = len(at), rates.shape[1:-2], rates.shape[-2]
        rates = rates.reshape(panels, NODES, *shape, size, size + 1).movedim(1, -3)
        rates = rates * widths.reshape(-1, *[1] * (len(shape) + 3))
        generator = rates[..., :-1]
        system = torch.eye(NODES * size, dtype=torch.float64, device=at.device) - (
            generator[..., :, :, None, :] * stages[:, None, :, None]
        ).reshape(panels, *shape, NODES * size, NODES * size)
        slopes = torch.linalg.solve(system, rates.reshape(panels, *shape, NODES * size, size + 1))
        slopes = slopes.reshape(panels, *shape, NODES, size, size + 1)
        moved: Tensor = (weights[:, None, None] * slopes).sum(-3)
        return moved

    def rates(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Ω ``(T, …, K, K)`` and the force ``L⁻¹κ/…`` ``(T, …, K, 1)`` per unit of log-distance, the latter
        without the factor ``1 + ρI_t`` of a step from t.
        """
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
        share = 1.0 / load if self.frame == "endpoint" else load.rsqrt()
        inner = forward_solve(factor, drift @ factor)
        inner = inner + 0.5 * forward_solve(factor, forward_solve(factor, spread).mT)
        if law.start_time < law.end_time:
            white = forward_solve(factor, self.lift(law.marginal(t)[0])[..., None])
            inner = inner + self.ratio[..., None, None] * forward_solve(factor, pull) @ white.mT
        force = forward_solve(factor, kappa)
        skew = inner.triu(1) - inner.triu(1).mT
        return speed * skew, speed * share[..., None, None] * force


def followed(first: Tensor, second: Tensor) -> Tensor:
    """``[O - 1, c]`` of two moves, one after the other."""
    return first + second + second[..., :-1] @ first


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


@functools.cache
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
