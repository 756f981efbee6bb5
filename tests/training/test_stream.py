import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler

from spatialdiff.training.checkpoint import check_plain
from spatialdiff.training.randomness import capture, isolated, seeded
from spatialdiff.training.stream import ItemStream, LoaderStream, stream

CPU = torch.device("cpu")


class Noisy(torch.utils.data.Dataset):
    """Items with augmentation from every global generator."""

    def __len__(self):
        return 11

    def __getitem__(self, i):
        return torch.tensor([i, torch.rand(()).item(), random.random(), np.random.rand()])  # noqa: NPY002


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1)


class OwnSampler(Sampler):
    def __len__(self):
        return 11

    def __iter__(self):
        return iter(range(11))


def take(s, n):
    return [s.next() for _ in range(n)]


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23])
def test_every_epoch_is_a_permutation_and_epochs_have_no_gap(batch_size):
    s = ItemStream(torch.arange(10), batch_size, seed=0)
    n = -(-30 // batch_size)
    order = torch.cat(take(s, n))
    epochs = order[:30].reshape(3, 10)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(10).expand(3, 10))
    assert not torch.equal(epochs[0], epochs[1])
    assert s.state() == {"epoch": n * batch_size // 10, "index": n * batch_size % 10}
    other = torch.cat(take(ItemStream(torch.arange(10), batch_size, seed=1), n))
    assert not torch.equal(order, other)


@pytest.mark.parametrize("done", range(8))
def test_items_go_on_from_any_position(done):
    data = (torch.arange(10), torch.arange(10) * 2.0)
    s = ItemStream(data, 4, seed=7)
    take(s, done)
    fresh = ItemStream(data, 4, seed=7)
    fresh.resume(s.state())
    for expected, found in zip(take(s, 6), take(fresh, 6), strict=True):
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], 2.0 * found[0])


def test_a_data_set_is_read_like_its_tensors():
    x = torch.randn(10, 1, 4)
    a, b = ItemStream(x, 3, seed=0), ItemStream(TensorDataset(x), 3, seed=0)
    for expected, (found,) in zip(take(a, 9), take(b, 9), strict=True):
        assert torch.equal(expected, found)


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True),
    "in order": lambda: DataLoader(Noisy(), batch_size=3),
    "own generator": lambda: DataLoader(
        Noisy(), batch_size=3, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(3)
    ),
    "weighted": lambda: DataLoader(
        Noisy(), batch_size=4, sampler=WeightedRandomSampler(torch.arange(1.0, 12.0), 11)
    ),
    "workers": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=1),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("done", [0, 2, 4, 6])
def test_a_loader_goes_on_from_any_position(name, done):
    if name == "workers" and done != 6:
        done = 2  # processes are slow to start
    world = seeded(0, CPU)
    with isolated(world, CPU):
        s = LoaderStream(LOADERS[name](), CPU, resumable=True)
        for _ in range(done):
            s.next()
            torch.rand(3)  # training draws too
        saved, globally = s.state(), capture(CPU)
        check_plain(saved)
        expected = []
        for _ in range(7):
            expected.append(s.next())
            torch.rand(3)
    with isolated(seeded(99, CPU), CPU):
        fresh = LoaderStream(LOADERS[name](), CPU, resumable=True)
        fresh.resume(saved)
        with isolated(globally, CPU):
            for batch in expected:
                assert torch.equal(batch, fresh.next())
                torch.rand(3)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (lambda: DataLoader(Endless(), batch_size=2), "IterableDataset"),
        (lambda: DataLoader(Noisy(), sampler=OwnSampler()), "OwnSampler cannot be replayed"),
        (lambda: DataLoader(Noisy(), num_workers=1, persistent_workers=True), "persistent_workers"),
        (lambda: DataLoader(Noisy(), num_workers=2, in_order=False), "in_order=False"),
    ],
)
def test_loaders_that_cannot_be_resumed_are_refused_only_with_checkpoints(loader, reason):
    with pytest.raises(ValueError, match=reason):
        stream(loader(), batch_size=1, seed=0, device=CPU, resumable=True)
    assert stream(loader(), batch_size=1, seed=0, device=CPU, resumable=False).epoch == 0


def test_bad_data():
    def make(data, batch_size=4):
        return stream(data, batch_size=batch_size, seed=0, device=CPU, resumable=True)

    with pytest.raises(ValueError, match="data are empty"):
        make(torch.zeros(0, 1, 8))
    x = torch.zeros(5, 1, 8)
    x[2, 0, 3] = x[4, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"2 values that are not finite, the first at index \(2, 0, 3\)"):
        make(x)
    with pytest.raises(ValueError, match=r"lengths \[5, 4\]"):
        make((torch.zeros(5, 1), torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make(torch.zeros(3), 0)
    with pytest.raises(TypeError, match="got ndarray"):
        make(np.zeros((3, 1, 8)))
    with pytest.raises(TypeError, match="IterableDataset"):
        make(Endless())
    with pytest.raises(ValueError, match="gives no batches"):
        make(DataLoader(Noisy(), batch_size=12, drop_last=True)).next()


def test_isolation_leaves_the_world_outside_as_it_was():
    torch.manual_seed(1)
    before = capture(CPU)
    run = seeded(0, CPU)
    with isolated(run, CPU):
        first = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    with isolated(run, CPU):
        second = torch.rand(3)
    after = capture(CPU)
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    with isolated(seeded(0, CPU), CPU):
        again = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        assert torch.equal(torch.rand(3), second)  # the second stay goes on where the first ended
    assert torch.equal(first[0], again[0])
    assert first[1:] == again[1:]
