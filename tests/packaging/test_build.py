"""Builds of a small project with the real setup.py: wheel, source archive, rebuilds."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., str]


def build_wheel(project: Path, run_setup: Run) -> zipfile.ZipFile:
    run_setup("-q", "bdist_wheel", FORCE_CUDA="0")
    (wheel,) = project.glob("dist/*.whl")
    return zipfile.ZipFile(wheel)


def compiled(output: str) -> set[str]:
    """The source files that ninja compiled, as it prints them."""
    return set(re.findall(r"CXX \S+/_C/(csrc/\S+)\.o", output))


def test_wheel_is_for_every_python_and_holds_the_library(project: Path, run_setup: Run) -> None:
    wheel = build_wheel(project, run_setup)
    assert "-cp310-abi3-linux_" in wheel.filename
    names = wheel.namelist()
    assert "tnt_kernels/_C.abi3.so" in names
    assert not [n for n in names if n.startswith(("csrc", "tests", "bench", "build"))]


def test_wheel_names_no_folder_of_this_machine(project: Path, run_setup: Run) -> None:
    folders = [str(project), str(Path(torch.__file__).parent.parent)]
    wheel = build_wheel(project, run_setup)
    for name in wheel.namelist():
        for folder in folders:
            assert folder.encode() not in wheel.read(name), (name, folder)


def test_built_op_runs_in_another_process(project: Path, run_setup: Run) -> None:
    run_setup("-q", "build_ext", "--inplace", FORCE_CUDA="0")
    script = (
        "import torch; torch.ops.load_library('tnt_kernels/_C.abi3.so'); "
        "print(torch.ops.tnt_packaging_test.twice(torch.arange(3.)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[0.0, 2.0, 4.0]"


def test_only_what_changed_is_compiled_again(project: Path, run_setup: Run) -> None:
    first = compiled(run_setup("build_ext", "--inplace", FORCE_CUDA="0"))
    assert {"csrc/bindings.cpp", "csrc/cpu/op.cpp", "csrc/cpu/isa/generic.cpp"} <= first
    assert compiled(run_setup("build_ext", "--inplace", FORCE_CUDA="0")) == set()
    time.sleep(0.01)  # a file time later than the objects', whatever the clock's grain
    (project / "csrc/cpu/kernels/twice.h").touch()
    again = compiled(run_setup("build_ext", "--inplace", FORCE_CUDA="0"))
    assert again == {source for source in first if "/isa/" in source}


def test_library_that_is_no_longer_built_is_removed(project: Path, run_setup: Run) -> None:
    (project / "tnt_kernels/_C_cuda.abi3.so").touch()
    run_setup("-q", "build_ext", "--inplace", FORCE_CUDA="0")
    assert [p.name for p in project.glob("tnt_kernels/*.so")] == ["_C.abi3.so"]


def test_instruction_set_unknown_to_the_compiler_is_left_out(
    project: Path, run_setup: Run, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++-without-avx512"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-mavx512f*) exit 1;; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    output = run_setup("build_ext", "--inplace", FORCE_CUDA="0", CXX=str(compiler))
    assert "avx512.cpp is left out" in output
    assert {"csrc/cpu/isa/generic.cpp", "csrc/cpu/isa/avx2.cpp"} <= compiled(output)
    assert "csrc/cpu/isa/avx512.cpp" not in compiled(output)


def test_compile_error_fails_the_build(project: Path, run_setup: Run) -> None:
    (project / "csrc/cpu/op.cpp").write_text("#error broken\n")
    assert "the build failed" in run_setup("build_ext", FORCE_CUDA="0", fails=True)


def test_source_archive_holds_all_that_a_build_reads(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    folders = ("csrc/", "tnt/", "tnt_kernels/", "tests/")
    wanted = {p for p in tracked.stdout.split() if p.startswith(folders) and (ROOT / p).exists()}
    wanted |= {"setup.py", "build_backend.py", "pyproject.toml", "LICENSE", "README.md"}
    assert not wanted - packed
