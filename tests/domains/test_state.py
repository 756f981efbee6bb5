"""Domains through plain data and back."""

from __future__ import annotations

import io

import pytest
import torch

import spatialdiff as sd
from spatialdiff.domains.state import domain_from_state, domain_state

MASK = torch.tensor([[True, False, True], [True, True, True]])
DOMAINS = [
    sd.Grid((3, 4), spacing=(0.5, 2.0), periodic=(True, False)),
    sd.Grid((2, 3)).masked(MASK),
    sd.RectilinearGrid([[0.0, 1.0, 3.0], [2.0, 2.5]]),
    sd.Points(torch.tensor([[0.0, 1.0], [2.0, 3.5], [4.0, 4.0]])),
    sd.Mesh.from_grid(sd.Grid((3, 3))),
    sd.Sphere((4, 6), poles=False, radius=6371.0),
    sd.Sphere((5, 6)),
    sd.Graph.path(5),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_a_domain_comes_back_from_a_file_without_code(domain):
    file = io.BytesIO()
    torch.save(domain_state(domain), file)
    file.seek(0)
    again = domain_from_state(torch.load(file, weights_only=True))
    assert again == domain
    assert type(again) is type(domain)


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of domain 'Torus'"):
        domain_from_state({"kind": "Torus"})
