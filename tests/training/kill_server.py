"""Train in forked processes that are killed, and write down what came of it; `python kill_server.py FOLDER`.

torch is imported once and run only in the children, so that a kill costs no import and no thread pool is
shared by a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import lightning_fabric  # noqa: F401 - imported before the forks
import torch
import toy

from spatialdiff.training import Trainer, checkpoint, read_metrics

STEPS = 31


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder, hook=None):
    torch.set_num_threads(1)
    trainer = Trainer(
        toy.objective(hook),
        run_dir=folder,
        batch_size=12,
        checkpoint_every=3,
        log_every=2,
        tensorboard=False,
        progress=False,
    )
    trainer.fit(toy.fields(), steps=STEPS)
    torch.save(toy.weights(trainer), folder / "weights.pt")


def child(work):
    """Run `work` in a child and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def outcome(pid):
    status = os.waitpid(pid, 0)[1]
    return (
        "killed"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        else os.WEXITSTATUS(status)
    )


def at_call(n):
    return lambda calls: die() if calls == n else None


def half_written():
    """Die with half of a checkpoint on the disk."""
    original, count = checkpoint.replace_atomically, 0

    def replace(path, content):
        nonlocal count
        count += path.suffix == ".pt"
        if count == 2:
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                os.fsync(file.fileno())
            die()
        original(path, content)

    checkpoint.replace_atomically = replace


def around_rename(before):
    """Die with a whole checkpoint under its temporary name, or right after it got its final one."""
    original, count = Path.replace, 0

    def replace(self, target):
        nonlocal count
        count += target.suffix == ".pt"
        if count == 2 and before:
            die()
        result = original(self, target)
        if count == 2:
            die()
        return result

    Path.replace = replace


def main(root):
    report = {}
    reference = root / "reference"
    reference.mkdir()
    assert outcome(child(lambda: train(reference))) == 0

    # planned: within a step before any checkpoint, within later steps, and three moments of writing a
    # checkpoint
    planned = root / "planned"
    planned.mkdir()
    plans = [
        lambda: train(planned, at_call(2)),
        lambda: train(planned, at_call(8)),
        lambda: (half_written(), train(planned)),
        lambda: train(planned, at_call(5)),
        lambda: (around_rename(before=True), train(planned)),
        lambda: (around_rename(before=False), train(planned)),
        lambda: train(planned),
    ]
    report["planned"], report["leftovers"], report["newest"] = [], [], []
    for plan in plans:
        report["planned"].append(outcome(child(plan)))
        names = sorted(p.name for p in (planned / "checkpoints").glob("*"))
        report["leftovers"].append(sum(name.endswith(".tmp") for name in names))
        report["newest"].append(max((n for n in names if n.startswith("step")), default=""))

    # unplanned: killed from outside, at whatever moment soon after a random step has begun
    unplanned = root / "unplanned"
    unplanned.mkdir()
    randomness = random.Random(0)
    report["unplanned"] = []
    for _ in range(60):
        reader, writer = os.pipe()

        def announce(calls, writer=writer):
            os.write(writer, b".")
            time.sleep(0.003)  # leave the parent time to strike

        pid = child(lambda hook=announce: train(unplanned, hook))
        os.close(writer)
        alive = all(os.read(reader, 1) for _ in range(randomness.randint(1, 12)))
        if alive:
            time.sleep(randomness.uniform(0.0, 0.02))
            os.kill(pid, signal.SIGKILL)
        report["unplanned"].append(outcome(pid))
        os.close(reader)
        if report["unplanned"][-1] == 0:
            break

    expected = torch.load(reference / "weights.pt")
    loss = {row["step"]: row["loss"] for row in read_metrics(reference / "metrics.csv")}
    for name in ("planned", "unplanned"):
        found = torch.load(root / name / "weights.pt")
        rows = read_metrics(root / name / "metrics.csv")
        report[f"{name}_weights_equal"] = bool(torch.equal(found, expected))
        report[f"{name}_metrics_equal"] = [row["step"] for row in rows] == list(loss) and all(
            row["loss"] == loss[row["step"]] for row in rows
        )
    (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
