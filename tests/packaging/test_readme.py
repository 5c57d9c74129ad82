"""README.md: its examples run, and its set-up commands are the two that CI relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_examples_run(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("timm")
    exec(compile("".join(blocks("python")), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "torch.Size([1, 10])" in printed
    assert "takes: native" in printed


def test_there_are_two_set_up_commands_of_one_line() -> None:
    main_job, tests = (block.splitlines() for block in blocks("sh"))
    assert [line.rpartition("&& ")[2] for line in main_job] == ["python bench/throughput.py"]
    assert [line.rpartition("&& ")[2] for line in tests] == ["pytest"]
