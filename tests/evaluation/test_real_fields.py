"""Terrain against its fitted Gaussian field, a sampled law against its spectrum, a save that fails."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.evaluation.spectrum import basis_for, rings
from spatialdiff.kernels import Matern


def test_terrain_is_told_from_its_fitted_gaussian_field_by_differences_only():
    data = sd.data.terrain(patch=16)
    fit = sd.fit(None, data.train, data.grid, method="spectrum")
    generator = torch.Generator().manual_seed(0)
    drawn = fit.covariance.sample((192, 1), generator=generator) + fit.mean
    found = sd.evaluation.compare(drawn, data.test, data.grid, training=data.train)
    assert found.training is not None
    # what real fields from elsewhere on the map score is the honest scale
    scale = {metric: max(found.training[metric], found.floor[metric]) for metric in found.floor}
    for metric in ("gradients", "curvature"):
        assert found.errors()[metric] > 1.5 * scale[metric]
    for metric in ("spectrum", "variogram"):
        assert found.errors()[metric] < 1.5 * scale[metric]


def test_the_spectrum_of_a_sampled_law_is_its_eigenvalues():
    grid, number = sd.Grid((16, 12), periodic=True), 400
    law = sd.covariance(Matern(nu=1.5, lengthscale=2.0), grid, channels=1).requires_grad_(False)
    fields = law.sample((number,), generator=torch.Generator().manual_seed(0))
    eigenvalues = law.eigenvalues().double().flatten()
    ring, place = rings(grid)
    weights, ring = basis_for(grid).weights.flatten(), ring.flatten()
    found = sd.evaluation.spectrum(fields, grid)[1].mean((0, 1))
    for r in range(len(place)):
        w, c = weights[ring == r], eigenvalues[ring == r]
        # power of a stored mode: a squared normal, variance 2 c², or the mean of w = 2 of them, c²
        variance = float((w.square() * 2 * c.square() / w).sum()) / float(w.sum()) ** 2
        assert abs(float(found[r]) - float((w * c).sum() / w.sum())) < 5 * math.sqrt(variance / number)


def test_a_save_that_fails_leaves_the_earlier_files_whole(tmp_path, monkeypatch):
    x = torch.randn(8, 1, 12, generator=torch.Generator().manual_seed(0))
    found = sd.evaluation.compare(x, x.flip(2) + 0.1, sd.Grid(12))
    found.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, file, **options):
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="no space left"):
        found.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
