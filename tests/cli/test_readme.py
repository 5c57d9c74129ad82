"""The commands that README.md shows are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tnt.cli.options import COMMANDS, parse

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_command_parses(line: str) -> None:
    words = shlex.split(line)
    start = words.index("tnt")
    assert words[start - 1] == "-m"
    options = parse(words[start + 1], words[start + 2 :])
    assert type(options) is COMMANDS[words[start + 1]]


def test_every_command_is_shown() -> None:
    assert {shlex.split(line.partition("-m tnt ")[2])[0] for line in LINES} == set(COMMANDS)
