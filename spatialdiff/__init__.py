"""Diffusion models whose noise is a random field.

    kernel k(x, x')  +  domain      →  covariance Γ
    covariance Γ     +  dynamics    →  noise process
    noise process    +  E[data | state]  →  score, drift, sampler, evaluation

Names are loaded on first use, so that `import spatialdiff` costs little more than `import torch`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from spatialdiff.version import __version__

# gpytorch imports pykeops where it is installed, which prints unless told not to
os.environ.setdefault("KEOPS_VERBOSE", "0")

if TYPE_CHECKING:
    from spatialdiff import (
        conditioning,
        data,
        evaluation,
        fitting,
        kernels,
        likelihood,
        networks,
        oracles,
        plotting,
    )
    from spatialdiff.conditioning import Kriging, fill
    from spatialdiff.covariance import (
        BlockCovariance,
        CirculantCovariance,
        CoregionalizedCovariance,
        CosineCovariance,
        Covariance,
        DenseCovariance,
        GraphMaternCovariance,
        KroneckerCovariance,
        LowRankCovariance,
        MaskedCovariance,
        MatrixFreeCovariance,
        MovingAverage,
        ReflectionCovariance,
        ScaledCovariance,
        SPDECovariance,
        SphereCovariance,
        SumCovariance,
        TorusCovariance,
        UnboundedField,
        VecchiaCovariance,
        WhiteCovariance,
        covariance,
        white,
    )
    from spatialdiff.denoisers import Denoiser
    from spatialdiff.domains import Graph, Grid, MaskedGrid, Mesh, Points, RectilinearGrid, Sphere
    from spatialdiff.fitting import FitResult, Variogram, fit, variogram
    from spatialdiff.objectives import BridgeMixture, Denoising, EvidenceBound
    from spatialdiff.processes import (
        ALDA,
        CLD,
        EDM,
        MALDA,
        VE,
        VP,
        BrownianBridge,
        BrownianMotion,
        Cosine,
        FixedPoint,
        FrequencyVP,
        HeatDissipation,
        IndependentField,
        LearnedDiffusion,
        LinearBridge,
        LinearDiffusion,
        OrnsteinUhlenbeck,
        OrnsteinUhlenbeckBridge,
        Paired,
        Rectified,
        SpectralDiffusion,
        StochasticHeat,
        SubVP,
    )
    from spatialdiff.sampling import sample
    from spatialdiff.training import Trainer

_HOME = {
    "conditioning": "Kriging fill",
    "covariance": (
        "BlockCovariance CirculantCovariance CoregionalizedCovariance CosineCovariance Covariance "
        "DenseCovariance GraphMaternCovariance KroneckerCovariance LowRankCovariance MaskedCovariance "
        "MatrixFreeCovariance MovingAverage ReflectionCovariance SPDECovariance ScaledCovariance "
        "SphereCovariance SumCovariance TorusCovariance UnboundedField VecchiaCovariance "
        "WhiteCovariance covariance white"
    ),
    "denoisers": "Denoiser",
    "domains": "Graph Grid MaskedGrid Mesh Points RectilinearGrid Sphere",
    "fitting": "FitResult Variogram fit variogram",
    "objectives": "BridgeMixture Denoising EvidenceBound",
    "processes": (
        "ALDA CLD EDM MALDA VE VP BrownianBridge BrownianMotion Cosine FixedPoint IndependentField "
        "LearnedDiffusion LinearBridge LinearDiffusion OrnsteinUhlenbeck OrnsteinUhlenbeckBridge Paired "
        "FrequencyVP HeatDissipation Rectified SpectralDiffusion StochasticHeat SubVP"
    ),
    "sampling": "sample",
    "training": "Trainer",
}
_MODULES = (
    "conditioning",
    "data",
    "evaluation",
    "fitting",
    "kernels",
    "likelihood",
    "networks",
    "oracles",
    "plotting",
)
_NAMES = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "ALDA",
    "CLD",
    "EDM",
    "MALDA",
    "VE",
    "VP",
    "BlockCovariance",
    "BridgeMixture",
    "BrownianBridge",
    "BrownianMotion",
    "CirculantCovariance",
    "CoregionalizedCovariance",
    "Cosine",
    "CosineCovariance",
    "Covariance",
    "Denoiser",
    "Denoising",
    "DenseCovariance",
    "EvidenceBound",
    "FitResult",
    "FixedPoint",
    "FrequencyVP",
    "Graph",
    "GraphMaternCovariance",
    "Grid",
    "HeatDissipation",
    "IndependentField",
    "Kriging",
    "KroneckerCovariance",
    "LearnedDiffusion",
    "LinearBridge",
    "LinearDiffusion",
    "LowRankCovariance",
    "MaskedCovariance",
    "MaskedGrid",
    "MatrixFreeCovariance",
    "Mesh",
    "MovingAverage",
    "OrnsteinUhlenbeck",
    "OrnsteinUhlenbeckBridge",
    "Paired",
    "Points",
    "Rectified",
    "RectilinearGrid",
    "ReflectionCovariance",
    "SPDECovariance",
    "ScaledCovariance",
    "SpectralDiffusion",
    "Sphere",
    "SphereCovariance",
    "StochasticHeat",
    "SubVP",
    "SumCovariance",
    "TorusCovariance",
    "Trainer",
    "UnboundedField",
    "Variogram",
    "VecchiaCovariance",
    "WhiteCovariance",
    "__version__",
    "conditioning",
    "covariance",
    "data",
    "evaluation",
    "fill",
    "fit",
    "fitting",
    "kernels",
    "likelihood",
    "networks",
    "oracles",
    "plotting",
    "sample",
    "variogram",
    "white",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"spatialdiff.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"spatialdiff.{name}")
    else:
        raise AttributeError(f"module 'spatialdiff' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


# Last, and eager: importing the subpackage binds its name here once; the function of that name must win.
from spatialdiff.covariance import covariance  # noqa: E402
