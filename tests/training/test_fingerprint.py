import dataclasses

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.training.fingerprint import describe, differences


@dataclasses.dataclass(frozen=True)
class Schedule:
    rate: float = 2.0
    shape: tuple[int, ...] = (4, 4)


class Thing(nn.Module):
    def __init__(self, schedule=None, length=1.5, mean=0.0, kind="a", width=3):
        super().__init__()
        self.schedule = schedule or Schedule()
        self.kind = kind
        self.weighting = torch.sin
        self._cache = object()
        self.length = nn.Parameter(torch.tensor([length]))
        self.mean = torch.full((4,), mean)
        self.register_buffer("bound", torch.tensor(torch.inf))
        self.register_buffer("scratch", torch.rand(3), persistent=False)
        self.network = nn.Linear(width, 1)


def about(**kwargs):
    thing = Thing(**kwargs)
    return describe(thing, thing.network, "thing")


def test_equal_configurations_are_equal_whatever_the_trained_weights():
    assert differences(about(), about()) == []
    thing = Thing()
    before = describe(thing, thing.network)
    with torch.no_grad():
        thing.network.weight.add_(1.0)
    thing.eval()
    assert differences(before, describe(thing, thing.network)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schedule": Schedule(rate=3.0)}, "thing.schedule.rate was 2.0 and is 3.0 now"),
        ({"schedule": Schedule(shape=(4, 5))}, r"thing.schedule.shape\[1\] was 4 and is 5 now"),
        ({"kind": "b"}, "thing.kind was 'a' and is 'b' now"),
        ({"length": 1.6}, "thing.length was .*1.5.*1.6"),
        ({"mean": 1.0}, "thing.mean was"),
        ({"width": 4}, "thing.network.in_features was 3 and is 4 now"),
    ],
)
def test_what_differs_is_named(change, line):
    import re

    assert any(re.search(line, found) for found in differences(about(), about(**change)))


def test_fitted_values_may_differ_in_the_last_digits_only():
    assert differences(about(), about(length=1.5 * (1 + 1e-6))) == []
    assert len(differences(about(), about(length=1.5 * (1 + 1e-3)))) == 1


def test_the_order_of_values_counts():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))

    def moments(values):
        thing = Thing()
        thing.mean = values
        return describe(thing, thing.network, "thing")

    assert differences(moments(x), moments(x.flip(0)))


def test_many_differences_are_cut_short():
    lines = differences({str(i): i for i in range(20)}, {})
    assert len(lines) == 9
    assert lines[-1] == "and 12 more"


class Pair(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        self.first, self.second = first, second


def test_a_part_that_is_shared_and_one_that_is_equal_are_alike():
    """A run holds the domain of its data twice; repeated from files it holds two equal domains."""
    domain = sd.Grid((4, 5))
    shared = Pair(domain, domain)
    equal = Pair(domain, sd.Grid((4, 5)))
    assert differences(describe(shared, shared.network), describe(equal, equal.network)) == []
    other = Pair(domain, sd.Grid((4, 6)))
    assert differences(describe(shared, shared.network), describe(other, other.network))
