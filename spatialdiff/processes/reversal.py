"""Denoising as a bridge mixture: the process run backward is a bridge, and its start the noised data."""

from __future__ import annotations

import torch

from spatialdiff.processes.bridges import Bridge, Pinned
from spatialdiff.processes.couplings import Noised
from spatialdiff.processes.linear import LinearDiffusion
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.paths import LinearPath
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.processes.schedules import ReversedBeta
from spatialdiff.processes.signal import SignalProcess


def time_reversal(process: NoiseProcess) -> tuple[Pinned, Noised]:
    r"""The bridge and the coupling whose mixture, at time T - t, is the reverse-time SDE of ``process``.

    The path from noised to clean data, given both, is a bridge of the same reference under the reversed β;
    and with :math:`\sigma_t^2 = (1 - \alpha_t^2)/(2\theta)` the drift of the mixture,
    :math:`-\theta\beta X + \beta\alpha_t(D - \alpha_t X)/\sigma_t^2`, is that of the reverse SDE,
    :math:`\theta\beta X + \beta(\alpha_t D - X)/\sigma_t^2`.

    For K variables the path given the data is the stationary process conditioned on its data variable, whose
    reversal has the drift matrix :math:`S A^\top S^{-1}` and the same noise: it is pinned in the data.

    Raises ``TypeError`` for ``Cosine`` and ``Rectified``, which no β schedule on a closed interval gives, and
    ``ValueError`` for several variables without a stationary law, or that do not start in it.
    """
    if isinstance(process, LinearDiffusion):
        drift, diffusion, initial = process.matrices()
        law = process.stationary
        if law is None or not torch.allclose(initial[..., 1:, 1:], law[..., 1:, 1:], rtol=1e-9, atol=1e-12):
            raise ValueError(
                "time reversal as a bridge needs a stationary law from which the auxiliary variables start "
                "(initial= left out), independent of the data variable"
            )
        if float(law[..., 0, 1:].abs().sum()) > 1e-12 * float(law.abs().max()):
            raise ValueError("the stationary law couples the data variable with the auxiliary ones")
        backward = torch.linalg.solve(law, (law @ drift.mT).mT).mT
        reference = LinearDiffusion(
            process.covariance, backward, diffusion, beta=ReversedBeta(process.schedule), basis=process.basis
        )
        return LinearBridge(reference), Noised.of(process)
    path = process.schedule if isinstance(process, SignalProcess) else None
    if not isinstance(path, LinearPath):
        raise TypeError(
            f"{type(process).__name__} has no beta schedule; time_reversal needs VP, VE, BrownianMotion, "
            "OrnsteinUhlenbeck or a LinearDiffusion"
        )
    return Bridge(process.covariance, ReversedBeta(path.beta), path.theta), Noised.of(process)
