import pytest
import torch
import torch.nn.functional as F

from spatialdiff.domains import Grid
from spatialdiff.networks import UNet
from spatialdiff.networks.blocks import Convolution
from spatialdiff.networks.embedding import TimeEmbedding


def awake(network, seed=0):
    """Give every parameter a value, so that zero-initialised layers take part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)
    return network


GRIDS = [Grid((16,)), Grid((8, 12), periodic=True), Grid((8, 8), periodic=(True, False)), Grid((4, 8, 4))]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("channels", "out", "blocks"), [(1, None, 1), (3, 2, 2)])
def test_shapes_and_zero_start(grid, channels, out, blocks):
    network = UNet(channels, grid, width=8, out_channels=out, blocks=blocks)
    x = torch.randn(2, channels, *grid.shape)
    y = network(x, torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert y.shape == (2, out or channels, *grid.shape)
    assert torch.equal(y, torch.zeros_like(y))
    awake(network)
    y = network(x, torch.tensor(0.3))
    assert y.isfinite().all()
    assert y.std() > 0.01
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("periodic", [(True, True), (True, False), (False, True)])
def test_translation_along_periodic_axes_only(periodic):
    network = awake(UNet(1, Grid((16, 16), periodic=periodic), width=8)).double()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.2, 0.7])
    for axis, flag in enumerate(periodic):
        shift = (4,)  # what 2**depth divides
        moved = network(x.roll(shift, 2 + axis), t)
        expected = network(x, t).roll(shift, 2 + axis)
        assert torch.allclose(moved, expected, rtol=1e-9, atol=1e-9) is flag


@pytest.mark.parametrize("periodic", [(False, False), (True, True), (True, False)])
def test_convolution_pads_each_axis_as_asked(periodic):
    layer = Convolution(2, 3, periodic).double()
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padded = x
    for axis, flag in enumerate(periodic):
        first, last = padded.narrow(2 + axis, 0, 1), padded.narrow(2 + axis, -1, 1)
        ends = (last, first) if flag else (torch.zeros_like(last), torch.zeros_like(first))
        padded = torch.cat((ends[0], padded, ends[1]), dim=2 + axis)
    expected = F.conv2d(padded, layer.convolution.weight, layer.convolution.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_attention_sees_the_whole_domain():
    for attention in (True, False):
        network = awake(UNet(1, 1, width=8, depth=1, attention=attention)).double()
        x = torch.zeros(1, 1, 256, dtype=torch.float64, requires_grad=True)
        # without normalisation, which is of the whole domain too
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda h: h  # type: ignore[method-assign]
        network(x, torch.tensor(0.5))[0, 0, 0].backward()
        assert (x.grad[0, 0, 128:].abs().max() > 0).item() is attention


def test_time_matters_on_both_ranges():
    embed = awake(TimeEmbedding(16)).double()
    for times in (torch.linspace(0, 1, 21), torch.linspace(-5, 5, 41)):
        e = embed(times)
        distance = (e[1:] - e[:-1]).norm(dim=1)
        assert e.shape == (len(times), 16)
        assert (distance > 1e-2 * e.norm(dim=1).mean()).all()
        # distinct times stay distinct: no two share an embedding as with a single frequency
        assert torch.pdist(e).min() > 1e-2


def test_conditions_are_concatenated_by_name():
    network = awake(UNet(1, Grid((8, 8)), width=8, depth=1, condition_channels=3))
    x, a, b = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.randn(2, 2, 8, 8)
    t = torch.rand(2)
    y = network(x, t, start=a, terrain=b)
    assert torch.equal(y, network(x, t, terrain=b, start=a))
    assert not torch.allclose(y, network(x, t, start=a + 1, terrain=b))
    with pytest.raises(ValueError, match="condition_channels=3 and is given 1 \\(start\\)"):
        network(x, t, start=a)
    with pytest.raises(ValueError, match="'start' must have shape \\(2, c, 8, 8\\)"):
        network(x, t, start=a[..., :4], terrain=b)


def test_seeded_construction_is_reproducible():
    def weights():
        torch.manual_seed(3)
        return torch.cat([p.flatten() for p in UNet(1, 2, width=8).parameters()])

    assert torch.equal(weights(), weights())


def test_other_sizes_that_the_depth_divides():
    network = awake(UNet(1, Grid((8, 8)), width=8))
    assert network(torch.randn(1, 1, 12, 20), torch.rand(1)).shape == (1, 1, 12, 20)
    with pytest.raises(ValueError, match=r"the grid \(12, 18\) cannot be halved 2 times.*depth=1 or less"):
        network(torch.randn(1, 1, 12, 18), torch.rand(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": Grid((8, 9))}, "multiple of 4"),
        ({"grid": 4}, "1, 2 or 3 dimensions, not 4"),
        ({"grid": 2, "width": 10}, "multiple of 4, got 10"),
        ({"grid": 2, "multipliers": (1, 2)}, "needs 3 multipliers"),
        ({"grid": 2, "blocks": 0}, "blocks must be at least 1"),
        ({"grid": 2, "channels": 0}, "channels must be at least 1"),
    ],
)
def test_bad_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{"channels": 1, **arguments})


def test_bad_state():
    network = UNet(2, Grid((8, 8)), width=8)
    with pytest.raises(ValueError, match="must have shape \\(B, 2, n1, n2\\), got \\(1, 1, 8, 8\\)"):
        network(torch.randn(1, 1, 8, 8), torch.rand(1))
    with pytest.raises(ValueError, match="got \\(2, 8, 8\\)"):
        network(torch.randn(2, 8, 8), torch.rand(1))
