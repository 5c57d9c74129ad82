"""train: the recipe, its files, and runs that are stopped and go on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from cli.helpers import QUIET, SMALL, error_of, rows
from tolerance import HALF_PRECISION_RUN, REGROUPED_RUN, SAME_RUN

import tnt
from tnt.cli import engine
from tnt.cli.main import main
from tnt.cli.options import TrainOptions, parse
from tnt.cli.parallel import World

# 32 images: 4 steps an epoch, of two micro-batches each
SHORT = [*SMALL, *QUIET, "--batch-size", "8", "--micro-batch", "4", "--epochs", "2"]
SHORT += ["--log-every", "1", "--save-every", "3", "--lr", "0.05", "--warmup-epochs", "1"]
STEPS = 8


def train(photos: Path, output: Path, *more: str) -> list[float]:
    """Losses of all steps of a short run of the whole recipe."""
    assert main(["train", str(photos), "--output", str(output), *SHORT, *more]) == 0
    return losses(output)


def losses(output: Path) -> list[float]:
    found = rows(output / "steps.csv")
    assert [row["step"] for row in found] == list(range(len(found)))
    return [row["loss"] for row in found]


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    output = tmp_path_factory.mktemp("finished")
    assert len(train(photos, output)) == STEPS
    return output


class TestRecipe:
    def test_default_is_table_3(self) -> None:
        options = parse("train", ["data"])
        assert (options.epochs, options.batch_size, options.opt) == (300, 1024, "adamw")
        assert (options.lr, options.sched, options.weight_decay) == (1e-3, "cosine", 0.05)
        assert (options.warmup_epochs, options.smoothing, options.drop_path) == (5, 0.1, 0.1)
        assert options.aug_repeats == 3
        assert (options.mixup, options.cutmix, options.reprob) == (0.8, 1.0, 0.25)
        assert options.auto_augment == "rand-m9-mstd0.5-inc1"
        assert options.ema

    def test_learning_rate_follows_the_batch_warms_up_and_ends_low(self) -> None:
        trainer = self.trainer(batch_size=512, epochs=10, warmup_epochs=2)
        rates = []
        for step in range(10 * 7):
            trainer.scheduler.step_update(step)
            rates.append(trainer.lr)
        assert rates[0] == pytest.approx(1e-6)
        assert rates[:14] == sorted(rates[:14])
        assert max(rates) == pytest.approx(5e-4, rel=0.1)
        assert rates[14:] == sorted(rates[14:], reverse=True)
        assert rates[-1] == pytest.approx(1e-5, rel=0.1)

    def test_positions_class_token_norms_and_biases_do_not_decay(self) -> None:
        trainer = self.trainer()
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        decayed = {
            names[id(p)]: group["weight_decay"]
            for group in trainer.optimizer.param_groups
            for p in group["params"]
        }
        assert decayed.keys() == set(names.values())
        for name, decay in decayed.items():
            free = name in ("cls_token", "patch_pos", "pixel_pos") or "norm" in name
            assert decay == (0.0 if free or name.endswith("bias") else 0.05), name

    @staticmethod
    def trainer(**changes: object) -> engine.Trainer:
        model = timm.create_model("tnt_s_patch16_224_fused", depth=1, img_size=32)
        options = TrainOptions(data="", **changes)
        world = World(0, 1, torch.device("cpu"))
        config = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        return engine.Trainer(options, model, 10, world, 1, 7, config)

    @pytest.mark.parametrize(
        ("batch", "limit", "size", "expected"),
        [(1024, 128, 1, 128), (1024, 128, 4, 128), (1024, 100, 2, 64), (96, 128, 2, 48)],
    )
    def test_micro_batches_add_up_to_the_batch(
        self, batch: int, limit: int, size: int, expected: int
    ) -> None:
        options = TrainOptions(data="", batch_size=batch, micro_batch=limit)
        world = World(0, size, torch.device("cpu"))
        assert engine.micro_batch_size(options, world) == expected

    def test_every_accumulation_gives_the_gradient_of_the_batch(
        self, photos: Path, tmp_path: Path
    ) -> None:
        plain = ["--mixup", "0", "--cutmix", "0", "--reprob", "0", "--drop-path", "0"]
        plain += ["--epochs", "1", "--no-ema"]
        curves = [
            train(photos, tmp_path / size, *plain, "--micro-batch", size) for size in ("8", "2")
        ]
        assert curves[1] == pytest.approx(curves[0], rel=REGROUPED_RUN)


class TestFiles:
    def test_logs_have_every_step_and_epoch(self, finished: Path) -> None:
        epochs = rows(finished / "epochs.csv")
        steps = losses(finished)
        assert [row["epoch"] for row in epochs] == [0, 1]
        assert epochs[1]["train_loss"] == pytest.approx(sum(steps[4:]) / 4)
        assert {"eval_top1", "eval_loss", "eval_ema_top1", "lr"} <= epochs[0].keys()
        assert list(finished.glob("events.out.tfevents.*"))
        assert not list(finished.glob(".*partial"))

    def test_best_weights_predict_with_class_names(
        self, finished: Path, photos: Path, capsys: pytest.CaptureFixture
    ) -> None:
        photo = str(photos / "val" / "china" / "00.png")
        for name in ("best.safetensors", "last.pt"):
            assert main(["predict", photo, "--weights", str(finished / name)]) == 0
            printed = capsys.readouterr().out
            assert "china" in printed and "flower" in printed

    def test_eval_of_the_best_weights_gives_the_accuracy_of_the_run(
        self, finished: Path, photos: Path, capsys: pytest.CaptureFixture
    ) -> None:
        weights = ["--weights", str(finished / "best.safetensors")]
        assert main(["eval", str(photos), *weights, *QUIET]) == 0
        epochs = rows(finished / "epochs.csv")
        best = max(row[name] for row in epochs for name in ("eval_top1", "eval_ema_top1"))
        assert f"top-1 {best:.2f} %" in capsys.readouterr().out

    def test_saved_config_repeats_the_run(
        self, finished: Path, photos: Path, tmp_path: Path
    ) -> None:
        config = str(finished / "config.yaml")
        first = parse("train", ["--config", config])
        assert (first.data, first.batch_size, first.scale) == (str(photos), 8, (0.08, 1.0))
        changed = parse("train", ["--config", config, "--epochs", "1", "--output", str(tmp_path)])
        assert (changed.epochs, changed.batch_size) == (1, 8)

    @pytest.mark.parametrize("amp", ["bf16", "fp16"])
    def test_mixed_precision_with_clipping_and_recomputation_stays_near(
        self, amp: str, finished: Path, photos: Path, tmp_path: Path
    ) -> None:
        more = ["--channels-last", "--grad-checkpointing", "--clip-grad", "100", "--amp", amp]
        near, exact = train(photos, tmp_path, *more, "--epochs", "1"), losses(finished)[:4]
        assert near[:3] == pytest.approx(exact[:3], rel=HALF_PRECISION_RUN)
        assert near != exact

    def test_compiled_runs_give_the_same_losses(
        self, finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        compile_ = torch.nn.Module.compile

        def compile_quickly(module: torch.nn.Module) -> None:
            calls.append(module)
            compile_(module, backend="aot_eager")  # inductor's code takes a minute to compile

        monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
        compiled = train(photos, tmp_path, "--compile", "--epochs", "1")
        assert len(calls) == 1
        assert compiled == pytest.approx(losses(finished)[:4], rel=REGROUPED_RUN)


class TestResume:
    @pytest.mark.parametrize("stop", [0, 2, 3, 5, 7])
    def test_a_run_stopped_in_any_step_goes_on_with_the_same_losses(
        self,
        stop: int,
        finished: Path,
        photos: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        step = engine.Trainer.train_step

        def stopping(self: engine.Trainer, batches: object) -> torch.Tensor:
            if self.step == stop:
                raise KeyboardInterrupt
            return step(self, batches)

        monkeypatch.setattr(engine.Trainer, "train_step", stopping)
        start = ["train", str(photos), "--output", str(tmp_path), *SHORT]
        assert main([*start, "--resume", "auto"]) == 130
        monkeypatch.setattr(engine.Trainer, "train_step", step)
        assert main([*start, "--resume", "auto"]) == 0
        self.assert_same_run(tmp_path, finished)

    @staticmethod
    def assert_same_run(output: Path, finished: Path) -> None:
        assert losses(output) == pytest.approx(losses(finished), rel=SAME_RUN)
        resumed, whole = rows(output / "epochs.csv"), rows(finished / "epochs.csv")
        assert len(resumed) == len(whole)
        for ours, theirs in zip(resumed, whole):
            assert ours == pytest.approx(theirs, rel=SAME_RUN)
        states = [torch.load(folder / "last.pt") for folder in (output, finished)]
        for name in ("model", "model_ema"):
            for key, value in states[1][name].items():
                torch.testing.assert_close(
                    states[0][name][key], value, rtol=SAME_RUN, atol=SAME_RUN
                )
        assert states[0]["scheduler"] == states[1]["scheduler"]

    @pytest.mark.parametrize("moment", ["step", "save"])
    def test_sigkill(self, moment: str, finished: Path, photos: Path, tmp_path: Path) -> None:
        """Killed in the sixth step, or with half of the second checkpoint written."""
        start = ["train", str(photos), "--output", str(tmp_path), *SHORT]
        code = (
            "import os, signal, sys\n"
            "from tnt.cli import engine, saving\n"
            "from tnt.cli.main import main\n"
            "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
            "step, save = engine.Trainer.train_step, saving.torch.save\n"
            "def dying_step(self, batches):\n"
            "    return kill() if self.step == 5 else step(self, batches)\n"
            "def dying_save(state, file):\n"
            "    if state['step'] > 3: file.write(b'half'); file.flush(); kill()\n"
            "    save(state, file)\n"
            f"if {moment == 'step'}: engine.Trainer.train_step = dying_step\n"
            "else: saving.torch.save = dying_save\n"
            f"main({start!r})\n"
        )
        root = Path(tnt.__file__).parents[1]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, text=True)
        assert done.returncode == -signal.SIGKILL
        assert (tmp_path / ".last.pt.partial").exists() == (moment == "save")
        assert torch.load(tmp_path / "last.pt")["step"] == {"step": 4, "save": 3}[moment]
        assert main([*start, "--resume", "auto"]) == 0
        self.assert_same_run(tmp_path, finished)
        assert not (tmp_path / ".last.pt.partial").exists()

    def test_processes_that_load_images_change_nothing(
        self, finished: Path, photos: Path, tmp_path: Path
    ) -> None:
        loaded = train(photos, tmp_path, "--workers", "2", "--epochs", "1")
        assert loaded == pytest.approx(losses(finished)[:4], rel=SAME_RUN)

    def test_auto_without_a_run_begins_one(self, photos: Path, tmp_path: Path) -> None:
        assert len(train(photos, tmp_path, "--resume", "auto", "--epochs", "1")) == STEPS / 2

    def test_a_run_is_not_overwritten(
        self, finished: Path, photos: Path, capsys: pytest.CaptureFixture
    ) -> None:
        before = (finished / "last.pt").read_bytes()
        message = error_of(capsys, "train", photos, "--output", finished, *SHORT)
        assert "holds a run" in message and "--resume auto" in message
        assert (finished / "last.pt").read_bytes() == before

    def test_other_options_are_named(
        self, finished: Path, photos: Path, capsys: pytest.CaptureFixture
    ) -> None:
        arguments = ["train", photos, "--output", finished, *SHORT, "--resume", "auto"]
        message = error_of(capsys, *arguments, "--weight-decay", "0.2")
        assert "weight_decay (was 0.05, is 0.2)" in message

    def test_a_file_that_is_no_run(
        self, photos: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        torch.save({"model": {}}, tmp_path / "weights.pt")
        for path, text in ((tmp_path / "weights.pt", "no state"), (tmp_path / "no.pt", "no such")):
            arguments = ["train", photos, "--output", tmp_path, *SHORT, "--resume", path]
            assert text in error_of(capsys, *arguments)

    def test_a_hostile_checkpoint_is_not_run(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        witness = tmp_path / "witness"

        class Hostile:
            def __reduce__(self) -> tuple:
                return Path.touch, (witness,)

        torch.save({"step": Hostile()}, tmp_path / "last.pt")
        arguments = ["train", photos, "--output", tmp_path, *SHORT, "--resume", "auto"]
        assert "was not run" in error_of(capsys, *arguments)
        assert not witness.exists()


class TestErrors:
    def test_a_full_disk_leaves_the_last_checkpoint(
        self,
        finished: Path,
        photos: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        resource = pytest.importorskip("resource")
        from tnt.cli import train as train_module

        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        save = train_module.save_state

        def fill_up(path: Path, state: dict) -> None:
            if state["step"] > 3:  # the first one fits
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
            try:
                save(path, state)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)

        arguments = ["train", photos, "--output", tmp_path, *SHORT, "--resume", "auto"]
        monkeypatch.setattr(train_module, "save_state", fill_up)
        message = error_of(capsys, *arguments)
        assert "last.pt could not be saved" in message and "is intact" in message
        assert torch.load(tmp_path / "last.pt")["step"] == 3
        assert not list(tmp_path.glob(".*partial"))
        monkeypatch.setattr(train_module, "save_state", save)
        assert main([str(argument) for argument in arguments]) == 0
        TestResume.assert_same_run(tmp_path, finished)

    def test_a_log_that_cannot_be_written(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "steps.csv").mkdir()
        message = error_of(capsys, "train", photos, "--output", tmp_path, *SHORT)
        assert "steps.csv" in message

    def test_classes_that_only_one_split_has(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "train").symlink_to(photos / "train")
        (tmp_path / "val").mkdir()
        (tmp_path / "val" / "lawn").symlink_to(photos / "val" / "china")
        message = error_of(capsys, "train", tmp_path, "--output", tmp_path / "run", *SHORT)
        assert "(lawn) not among the 2" in message
        assert not (tmp_path / "run").exists()

    def test_too_few_images(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        arguments = ["train", photos, "--output", tmp_path, *SHORT, "--batch-size", "64"]
        assert "has 32 images, too few" in error_of(capsys, *arguments)

    def test_odd_micro_batches(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        arguments = ["train", photos, "--output", tmp_path, *SHORT, "--batch-size", "9"]
        assert "Mixup pairs images" in error_of(capsys, *arguments, "--micro-batch", "9")

    def test_a_loss_that_is_not_finite(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        arguments = ["train", photos, "--output", tmp_path, *SHORT, "--lr", "1e30"]
        assert "the loss is " in error_of(capsys, *arguments)

    def test_fsdp_of_one_process(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        arguments = ["train", photos, "--output", tmp_path, *SHORT, "--fsdp"]
        assert "torchrun" in error_of(capsys, *arguments)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("learning_rate: 3", "learning_rate"), ("[1, 2]", "must hold"), ("a: [", "cannot be")],
    )
    def test_a_bad_yaml_file(
        self, text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "c.yaml").write_text(text)
        arguments = ["train", "data", "--config", tmp_path / "c.yaml"]
        assert expected in error_of(capsys, *arguments)

    def test_a_value_of_the_wrong_type_in_yaml_or_flags(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"epochs": "many"}))
        for arguments in (["--config", str(tmp_path / "c.yaml")], ["--epochs", "many"]):
            with pytest.raises(SystemExit) as exit_:
                parse("train", ["data", *arguments])
            assert exit_.value.code == 2
