"""Two processes by torchrun, DDP and FSDP2, do what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.helpers import QUIET, SMALL, rows
from tolerance import REGROUPED_HALF_PRECISION_RUN, REGROUPED_RUN, REORDERED_FLOAT32_SUM

import tnt
from tnt.cli.main import main

# The whole recipe; 4 steps of 4 micro-batches, half of them on each process.
SHORT = [*SMALL, *QUIET, "--batch-size", "8", "--micro-batch", "2", "--epochs", "1"]
SHORT += ["--log-every", "1", "--save-every", "2", "--warmup-epochs", "0", "--lr", "0.05"]
SHORT += ["--clip-grad", "1", "--no-tensorboard"]
RUNS = {"ddp": [], "fsdp": ["--fsdp"], "fsdp-fp16": ["--fsdp", "--amp", "fp16"]}

WORKER = """
import json, sys, torch
from tnt.cli import engine
from tnt.cli.main import main
from tnt.cli.parallel import joined
step = engine.Trainer.train_step
def stopping(self, batches):
    if self.options.output.endswith('-resumed') and self.options.resume is None and self.step == 3:
        raise KeyboardInterrupt
    return step(self, batches)
engine.Trainer.train_step = stopping
with joined(torch.device("cpu")):
    for arguments, status in json.loads(sys.argv[1]):
        assert main(arguments) == status, arguments
"""


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and, under their names in RUNS, of two."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name: str, *more: str) -> list[str]:
        return ["train", str(photos), "--output", str(folder / name), *SHORT, *more]

    assert main(train("one")) == 0
    assert main(train("one-fp16", "--amp", "fp16")) == 0
    jobs = [(train(name, *more), 0) for name, more in RUNS.items()]
    # stopped in the last step as DDP, gone on with as FSDP2
    jobs.append((train("changed-resumed"), 130))
    jobs.append((train("changed-resumed", "--fsdp", "--resume", "auto"), 0))
    weights = str(folder / "one" / "best.safetensors")
    jobs.append((["eval", str(photos), "--weights", weights, "--batch-size", "3", *QUIET], 0))
    (folder / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc_per_node=2", str(folder / "worker.py"), json.dumps(jobs)]
    root = str(Path(tnt.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("name", [*RUNS, "changed-resumed"])
def test_losses_and_accuracy_are_those_of_one_process(name: str, folder: Path) -> None:
    one = folder / ("one-fp16" if name.endswith("fp16") else "one")
    near = REGROUPED_HALF_PRECISION_RUN if name.endswith("fp16") else REORDERED_FLOAT32_SUM
    for file in ("steps.csv", "epochs.csv"):
        ours, expected = rows(folder / name / file), rows(one / file)
        assert len(ours) == len(expected)
        for row, other in zip(ours, expected):
            row.pop("images_per_s", None), other.pop("images_per_s", None)
            assert row == pytest.approx(other, rel=near)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "changed-resumed"])
def test_checkpoints_hold_whole_tensors_like_those_of_one_process(name: str, folder: Path) -> None:
    ours, expected = (torch.load(folder / run / "last.pt") for run in (name, "one"))
    assert ours["step"] == expected["step"] == 4
    for part in ("model", "model_ema"):
        assert ours[part].keys() == expected[part].keys()
        for key, value in expected[part].items():
            torch.testing.assert_close(
                ours[part][key], value, rtol=REGROUPED_RUN, atol=REORDERED_FLOAT32_SUM, msg=key
            )
    moments = [state["optimizer"]["state"] for state in (ours, expected)]
    assert moments[0].keys() == moments[1].keys()
    for key, moment in moments[1].items():
        assert moments[0][key]["exp_avg"].shape == moment["exp_avg"].shape


def test_one_process_loads_a_sharded_run(folder: Path, photos: Path) -> None:
    arguments = ["train", str(photos), "--output", str(folder / "fsdp"), *SHORT]
    assert main([*arguments, "--resume", "auto"]) == 0


def test_two_processes_evaluate_each_image_once(
    folder: Path, photos: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = str(folder / "one" / "best.safetensors")
    assert main(["eval", str(photos), "--weights", weights, *QUIET]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("10 images")
    assert (folder / "printed.txt").read_text().count(printed) == 1
