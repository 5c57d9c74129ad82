"""What a run leaves to read: CSV files, TensorBoard's events, a progress bar."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

from timm.utils.summary import trim_summary, update_summary
from tqdm import tqdm


class RunLog:
    """steps.csv and epochs.csv of a run, and the same in TensorBoard.

    Rows of steps and epochs that a resumed run will do again are removed first.
    """

    def __init__(self, folder: Path, step: int, epoch: int, tensorboard: bool) -> None:
        self.steps, self.epochs = folder / "steps.csv", folder / "epochs.csv"
        trim_summary(self.steps, step)  # it drops by the first column, whatever its name
        trim_summary(self.epochs, epoch)
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder, purge_step=step)
        self._last = (time.perf_counter(), step)

    def log_step(self, step: int, epoch: int, loss: float, lr: float, batch_size: int) -> None:
        """A row for the step of this number."""
        now, (before, last_step) = time.perf_counter(), self._last
        speed = (step + 1 - last_step) * batch_size / (now - before)
        self._last = (now, step + 1)
        row = {"step": step, "epoch": epoch, "loss": loss, "lr": lr, "images_per_s": speed}
        new = not self.steps.exists() or self.steps.stat().st_size == 0
        with open(self.steps, "a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self._board_scalars("step", {"loss": loss, "lr": lr, "images_per_s": speed}, step)

    def log_epoch(self, epoch: int, loss: float, evaluated: dict[str, float], lr: float) -> None:
        """A row for the epoch of this number."""
        update_summary(epoch, {"loss": loss}, evaluated, self.epochs, lr=lr)
        self._board_scalars("epoch", {"train_loss": loss, **evaluated}, epoch)

    def _board_scalars(self, group: str, values: dict[str, float], at: int) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, at)

    def close(self) -> None:
        """Flush what is not yet on the disk."""
        if self.board is not None:
            self.board.close()


class Silence:
    """Stands for `RunLog` on processes that do not write."""

    def log_step(self, *_: Any) -> None: ...

    def log_epoch(self, *_: Any) -> None: ...

    def close(self) -> None: ...


def progress(steps: Iterable[int], epoch: int, epochs: Optional[int], shown: bool) -> Iterator[int]:
    """The steps, with a bar over those of one epoch."""
    return tqdm(steps, f"epoch {epoch + 1}/{epochs}", disable=not shown, leave=False)
