import json
import math
import subprocess
import sys

import pytest
import torch
import toy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spatialdiff.training import CheckpointError, Trainer, TrainingError, load_weights, read_metrics
from spatialdiff.training.schedule import learning_rate


def make(tmp_path=None, hook=None, gain=1.0, dtype=torch.float32, **options):
    defaults = {
        "batch_size": 10,
        "checkpoint_every": 4,
        "log_every": 2,
        "tensorboard": False,
        "progress": False,
    }
    return Trainer(toy.objective(hook, gain, dtype=dtype), run_dir=tmp_path, **(defaults | options))


def test_it_learns():
    x = torch.zeros(16, 1, 8, 8)  # the target is x − mean = −0.5 everywhere
    objective = toy.objective()
    trainer = Trainer(objective, lr=3e-3, progress=False)
    first = objective(x, generator=torch.Generator().manual_seed(0)).item()
    assert first == pytest.approx(0.5)  # scale 2 × 0.25: the network starts at zero
    assert trainer.fit(x, steps=150) is trainer
    assert objective(x, generator=torch.Generator().manual_seed(0)).item() < 0.05 * first


def test_interrupted_and_resumed_in_one_process_is_uninterrupted(tmp_path):
    x = toy.fields()
    whole = make(tmp_path / "a").fit(x, steps=12)

    def stop(calls):
        if calls == 7:
            raise KeyboardInterrupt

    broken = make(tmp_path / "b", stop)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(x, steps=12)
    torch.rand(5)  # what the world outside draws does not matter
    resumed = make(tmp_path / "b").fit(x, steps=12)
    assert resumed.step == 12
    assert torch.equal(toy.weights(resumed), toy.weights(whole))
    # the broken trainer itself goes back to the checkpoint, as its half-made step cannot be trusted
    again = make(tmp_path / "c", stop)
    with pytest.raises(KeyboardInterrupt):
        again.fit(x, steps=12)
    again.objective._hook = None
    assert torch.equal(toy.weights(again.fit(x, steps=12)), toy.weights(whole))
    lonely = make(None, stop)
    with pytest.raises(KeyboardInterrupt):
        lonely.fit(x, steps=12)
    with pytest.raises(TrainingError, match="no checkpoint to go back to"):
        lonely.fit(x, steps=12)


@pytest.mark.parametrize("kind", ["tuple", "data set", "loader", "dict"])
def test_every_kind_of_data_resumes_exactly(tmp_path, kind):
    x, w = toy.fields(), torch.rand(40, generator=torch.Generator().manual_seed(9))

    class Named(TensorDataset):
        def __getitem__(self, i):
            return {"x": x[i], "weight": w[i]}

    def data():
        return {
            "tuple": lambda: (x, w),
            "data set": lambda: TensorDataset(x, w),
            "loader": lambda: DataLoader(TensorDataset(x, w), batch_size=10, shuffle=True),
            "dict": lambda: Named(x, w),
        }[kind]()

    def stop(calls):
        if calls == 8:
            raise KeyboardInterrupt

    whole = make(tmp_path / "a", checkpoint_every=3).fit(data(), steps=11)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", stop, checkpoint_every=3).fit(data(), steps=11)
    resumed = make(tmp_path / "b", checkpoint_every=3).fit(data(), steps=11)
    assert torch.equal(toy.weights(resumed), toy.weights(whole))
    assert not torch.equal(toy.weights(whole), toy.weights(make(seed=1).fit(data(), steps=11)))


def test_the_run_does_not_depend_on_nor_change_the_world_outside():
    a, b = make(), make()
    torch.manual_seed(17)
    a.fit(toy.fields(), steps=3)
    expected = torch.Generator().manual_seed(17)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    b.fit(toy.fields(), steps=3)
    assert torch.equal(toy.weights(a), toy.weights(b))


def test_objective_is_left_as_it_was():
    objective = toy.objective()
    network = objective.denoiser.network
    objective.dropout.eval()
    Trainer(objective, progress=False).fit(toy.fields(), steps=2)
    assert objective.denoiser.network is network
    assert not objective.dropout.training
    assert objective.training
    assert objective.denoiser.scale.requires_grad
    assert objective.denoiser.scale.item() == 2.0  # not the network's, not trained
    assert objective.denoiser.scale.grad is None


def test_checkpoint_is_data_only_and_complete(tmp_path):
    make(tmp_path).fit(toy.fields(), steps=5)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004.pt", "step-00000005.pt"]
    state = torch.load(tmp_path / "checkpoints" / names[-1], weights_only=True)
    assert state["step"] == 5
    assert state["data"] == {"epoch": 1, "index": 10}
    assert set(state) >= {
        *("network", "ema", "objective", "optimizer", "scheduler", "generator", "random", "setup", "versions")
    }
    assert state["versions"]["torch"] == torch.__version__
    assert sorted(state["objective"]) == ["denoiser.mean", "denoiser.scale"]


def test_finished_run_is_loaded_and_left_alone(tmp_path):
    done = make(tmp_path).fit(toy.fields(), steps=5)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    def never(calls):
        raise AssertionError("no step is made")

    loaded = make(tmp_path, never).fit(toy.fields(), steps=5)
    assert torch.equal(toy.weights(loaded), toy.weights(done))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_load_and_weights(tmp_path):
    done = make(tmp_path, keep=None).fit(toy.fields(), steps=8)
    loaded = make().load(tmp_path / "checkpoints" / "step-00000008.pt")
    assert torch.equal(toy.weights(loaded), toy.weights(done))
    early = make().load(tmp_path / "checkpoints" / "step-00000004.pt")
    assert early.step == 4
    early.fit(toy.fields(), steps=8)
    assert torch.equal(toy.weights(early), toy.weights(done))
    network = load_weights(tmp_path, toy.objective(seed=3).denoiser.network)
    assert torch.equal(network.head.convolution.weight, done.ema.module.head.convolution.weight)
    # going on from an old checkpoint beside newer ones would mix two histories
    with pytest.raises(CheckpointError, match=r"later checkpoint, step-00000008\.pt"):
        make(tmp_path).load(tmp_path / "checkpoints" / "step-00000004.pt").fit(toy.fields(), steps=8)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lr": 0.5}, "optimizer.lr was 0.001 and is 0.5 now"),
        ({"seed": 4}, "seed was 0 and is 4 now"),
        ({"gain": 2.0}, "objective.denoiser.gain was 1.0 and is 2.0 now"),
        ({"ema_decay": 0.9}, "ema_decay was 0.999 and is 0.9 now"),
        ({"batch_size": 5}, "data.batch_size was 10 and is 5 now"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer was 'AdamW' and is 'SGD' now"),
    ],
)
def test_checkpoint_of_another_configuration_is_refused(tmp_path, change, line):
    make(tmp_path).fit(toy.fields(), steps=4)
    other = make(tmp_path, **change)
    before = toy.weights(other)
    with pytest.raises(CheckpointError, match=line):
        other.fit(toy.fields(), steps=4)
    assert torch.equal(toy.weights(other), before)


def test_other_data_and_other_length_are_refused(tmp_path):
    make(tmp_path).fit(toy.fields(), steps=4)
    with pytest.raises(CheckpointError, match=r"data\.0\.sha256 was"):
        make(tmp_path).fit(toy.fields() + 1, steps=4)
    with pytest.raises(CheckpointError, match="steps was 4 and is 8 now"):
        make(tmp_path).fit(toy.fields(), steps=8)
    with pytest.raises(CheckpointError, match=r"already holds a run.*resume=False"):
        make(tmp_path, resume=False).fit(toy.fields(), steps=4)


def test_constant_schedule_can_be_extended(tmp_path):
    whole = make(schedule="constant", warmup=3).fit(toy.fields(), steps=9)
    make(tmp_path, schedule="constant", warmup=3).fit(toy.fields(), steps=5)
    longer = make(tmp_path, schedule="constant", warmup=3).fit(toy.fields(), steps=9)
    assert torch.equal(toy.weights(longer), toy.weights(whole))
    again = make(schedule="constant", warmup=3).fit(toy.fields(), steps=5).fit(toy.fields(), steps=9)
    assert torch.equal(toy.weights(again), toy.weights(whole))
    with pytest.raises(ValueError, match="already made 9 steps"):
        longer.fit(toy.fields(), steps=5)


def test_moving_average():
    decay, history = 0.9, []
    trainer = make(ema_decay=decay, hook=lambda _: history.append(None))
    network = trainer.network
    expected = None
    for n in range(1, 13):
        trainer._prepare(toy.fields(), 12)
        with torch.random.fork_rng():
            trainer._advance()
        w = torch.cat([p.detach().flatten().clone() for p in network.parameters()]).double()
        d = min(decay, n / (9 + n))
        expected = w if expected is None else d * expected + (1 - d) * w
    average = torch.cat([p.flatten() for p in trainer.ema.module.parameters()])
    torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)
    denoiser = trainer.ema_denoiser()
    assert not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert torch.equal(torch.cat([p.flatten() for p in denoiser.network.parameters()]), average)
    assert denoiser.network is not network
    assert network.head.convolution.weight.requires_grad


def test_learning_rate():
    f = learning_rate("cosine", 10, 110)
    assert [f(0), f(4), f(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [f(10), f(60), f(110), f(200)] == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-12)
    assert f(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [learning_rate("constant", 0, 5)(n) for n in (0, 50)] == [1.0, 1.0]


def test_the_rate_used_and_clipping(tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.5)

    trainer = make(tmp_path, optimizer=sgd, clip=1e-3, warmup=4, log_every=1)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.network.parameters()])
    trainer.fit(toy.fields(), steps=1)
    moved = torch.cat([p.detach().flatten() for p in trainer.network.parameters()]) - before
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert row["learning_rate"] == 0.125
    assert row["gradient_norm"] > 1e-3
    # one step of gradient descent with a clipped gradient: its length is rate × clip
    assert moved.norm().item() == pytest.approx(0.125e-3, rel=1e-2)


def test_metrics_file(tmp_path):
    make(tmp_path, seed=1).fit(toy.fields(), steps=7)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    assert all(math.isfinite(v) for row in rows for v in row.values())
    # rows past the checkpoint, and half a row, are dropped on resuming
    (tmp_path / "checkpoints" / "step-00000007.pt").unlink()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,0,9.")
    make(tmp_path, seed=1).fit(toy.fields(), steps=7)
    again = read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"]) for row in again] == [(row["step"], row["loss"]) for row in rows]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(tmp_path, tensorboard=True).fit(toy.fields(), steps=4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(e.step, e.value) for e in events.Scalars("train/loss")]
    rows = read_metrics(tmp_path / "metrics.csv")
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in rows]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_says_where_and_what_to_go_back_to(tmp_path, where):
    class Bad(toy.ToyObjective):
        def forward(self, x, *, generator=None):
            self._calls += 1
            loss = super().forward(x, generator=generator)
            if self._calls < 12:  # counted twice per call
                return loss
            return loss * torch.nan if where == "loss" else loss + (loss - loss).sqrt() * 0.0

    objective = Bad(toy.objective().denoiser)
    trainer = Trainer(objective, run_dir=tmp_path, checkpoint_every=4, tensorboard=False, progress=False)
    with pytest.raises(TrainingError, match=r"nan at step 6; the last checkpoint is .*step-00000004\.pt"):
        trainer.fit(toy.fields(), steps=10)
    assert toy.weights(trainer).isfinite().all()


def test_time_limit_counts_from_the_start(tmp_path):
    import time

    trainer = make(tmp_path, lambda calls: time.sleep(0.02)).fit(toy.fields(), steps=10_000, time_limit=0.3)
    assert 1 <= trainer.step <= 15
    assert (tmp_path / "checkpoints" / f"step-{trainer.step:08d}.pt").exists()
    resumed = make(tmp_path).fit(toy.fields(), steps=10_000, time_limit=0.3)
    assert resumed.step == trainer.step


def test_precision():
    x = toy.fields(dtype=torch.float64)
    double = make(dtype=torch.float64).fit(x, steps=2)
    assert double.fabric.strategy.precision.precision == "64-true"
    assert toy.weights(double).dtype == torch.float64
    single = make().fit(toy.fields(), steps=2)
    mixed = make(precision="bf16-mixed").fit(toy.fields(), steps=2)
    assert single.fabric.strategy.precision.precision == "32-true" or torch.cuda.is_available()
    assert toy.weights(mixed).dtype == torch.float32
    difference = (toy.weights(mixed) - toy.weights(single)).norm() / toy.weights(single).norm()
    assert 0 < difference < 0.05
    with pytest.raises(ValueError, match="needs a CUDA device"):
        make(precision="16-mixed", accelerator="cpu")


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"\.denoiser\.network"):
        Trainer(nn.Linear(1, 1))
    for name, value in (("lr", 0.0), ("ema_decay", 1.0), ("clip", -1.0), ("keep", 0), ("log_every", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            make(**{name: value})
    with pytest.raises(ValueError, match="known: cosine, constant"):
        make(schedule="linear")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        make().fit(toy.fields(), steps=0)
    objective = toy.objective()
    objective.denoiser.network.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        Trainer(objective)

    class Vector(toy.ToyObjective):
        def forward(self, x, *, generator=None):
            return x.flatten(1).mean(dim=1)

    with pytest.raises(TypeError, match=r"scalar tensor, got shape \(32,\)"):
        Trainer(Vector(toy.objective().denoiser), progress=False).fit(toy.fields(), steps=1)


def test_quiet_and_lazy(tmp_path):
    script = f"""
import sys, json
import spatialdiff.training
early = [m for m in ("lightning_fabric", "tensorboard", "tqdm.auto", "matplotlib") if m in sys.modules]
import toy
for precision in ("auto", "bf16-mixed"):
    run_dir = {str(tmp_path)!r} + "/" + precision
    options = dict(run_dir=run_dir, precision=precision, accelerator="cpu", progress=False)
    spatialdiff.training.Trainer(toy.objective(), **options).fit(toy.fields(), steps=2)
print(json.dumps(early))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=toy.__file__.rpartition("/")[0],
    )
    assert json.loads(done.stdout) == []
    assert done.stderr == ""
