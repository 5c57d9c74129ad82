"""When CUDA is built: asked of setup.py's helpers, with toolkits that only answer questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FakeNvcc = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_cuda_in_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test starts where there is no toolkit and no variable is set."""
    for name in ("FORCE_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_no_nvcc_means_no_cuda(setup_py: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert setup_py.choose_cuda("13.0") is None
    assert "nvcc is not on PATH" in capsys.readouterr().out


def test_force_makes_a_missing_toolkit_an_error(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but nvcc is not on PATH"):
        setup_py.choose_cuda("13.0")


def test_cuda_home_without_nvcc_is_named(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"CUDA_HOME=.* has no bin/nvcc"):
        setup_py.choose_cuda("13.0")


@pytest.mark.parametrize("where", ["CUDA_HOME", "PATH"])
def test_toolkit_of_torchs_major_version_is_taken_without_a_gpu(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, fake_nvcc: FakeNvcc, where: str
) -> None:
    home = fake_nvcc("13.1")
    monkeypatch.setenv(where, str(home if where == "CUDA_HOME" else home / "bin"))
    toolkit = setup_py.choose_cuda("13.0")
    assert toolkit.version == (13, 1)
    assert toolkit.root.name == "cuda-13.1"  # where nvcc says it is, not where its wrapper is


@pytest.mark.parametrize("torch_cuda", ["13.0", None], ids=["cuda-torch", "cpu-torch"])
def test_toolkit_that_does_not_fit_torch_is_taken_only_by_force(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, fake_nvcc: FakeNvcc, torch_cuda: str
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc("12.8")))
    assert setup_py.choose_cuda(torch_cuda) is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert setup_py.choose_cuda(torch_cuda).version == (12, 8)


def test_force_zero_skips_a_fitting_toolkit(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, fake_nvcc: FakeNvcc
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc("13.0")))
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert setup_py.choose_cuda("13.0") is None


def test_force_of_another_value_is_an_error(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA must be 0, 1 or unset, got 'yes'"):
        setup_py.choose_cuda("13.0")


def test_default_architectures_are_those_that_nvcc_knows(
    setup_py: ModuleType, fake_nvcc: FakeNvcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc("12.4")))
    flags = setup_py.cuda_arch_flags(setup_py.find_cuda_toolkit(), [])
    assert flags == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


@pytest.mark.parametrize(
    ("gpus", "archs"),
    [
        ([(9, 0)], ["9.0+PTX"]),
        ([(8, 9), (8, 9), (8, 6)], ["8.0+PTX"]),  # the code of their major version
        ([(12, 1), (8, 0)], ["8.0", "12.0+PTX"]),
        ([(9, 0), (7, 5)], ["8.0", "9.0", "10.0", "12.0+PTX"]),  # nothing fits one of them
        ([(13, 0)], ["8.0", "9.0", "10.0", "12.0+PTX"]),  # PTX does
    ],
)
def test_default_architectures_are_those_of_the_gpus(
    setup_py: ModuleType,
    fake_nvcc: FakeNvcc,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list,
    archs: list,
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc("13.0")))
    assert setup_py.default_archs(setup_py.find_cuda_toolkit(), gpus) == archs


def test_gpus_that_do_not_answer_leave_the_whole_list(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(device: int) -> None:
        raise RuntimeError("driver too old")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", fail)
    assert setup_py.visible_gpus() == []
    assert "driver too old" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["8.6;9.0a+PTX", "8.6 9.0a+PTX", "8.6, 9.0a+PTX;"])
def test_architecture_list_is_honoured(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert setup_py.cuda_arch_flags(None, [(8, 0)]) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_unreadable_architecture_is_named(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(SystemExit, match="got 'Hopper'"):
        setup_py.cuda_arch_flags(None, [(8, 0)])


@pytest.mark.parametrize(
    ("cores", "archs", "threads"), [(1, 5, 1), (2, 5, 1), (8, 5, 2), (16, 1, 1), (64, 5, 5)]
)
def test_architectures_are_compiled_at_once_where_cores_would_idle(
    setup_py: ModuleType, cores: int, archs: int, threads: int
) -> None:
    assert setup_py.nvcc_threads(cores, archs) == threads
