"""C++ sees PyTorch's setting for float32 products, whichever way it was set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cpp.build import import_file

import tnt_kernels  # noqa: F401 (defines the operator that C++ asks)

ROOT = Path(__file__).resolve().parents[2]
MATMUL, CONVOLUTION = torch.backends.cuda.matmul, torch.backends.cudnn.conv


@pytest.fixture(scope="module")
def asked() -> Callable[[bool], bool]:
    setup_py = import_file("tnt_setup_py", ROOT / "setup.py")
    torch_dir = Path(torch.__file__).parent
    ninja = setup_py.NinjaFile(ROOT / "build" / "tests")
    flags = [f"-DTORCH_TARGET_VERSION={setup_py.TORCH_TARGET_VERSION}", "-Icsrc"]
    flags += ["-isystem", str(torch_dir / "include")]
    command = [*setup_py.cxx(), *setup_py.CXX_FLAGS, *flags]
    output = ninja.build_dir / "tf32_op.so"
    obj = ninja.compile("tests/cpp/tf32_op.cpp", "tf32_op", command)
    ninja.link(output, [obj], [f"-L{torch_dir / 'lib'}", "-ltorch_cpu"])
    ninja.run()
    torch.ops.load_library(str(output))
    return torch.ops.tnt_kernels_cpp_test.asked


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    saved = MATMUL.fp32_precision, CONVOLUTION.fp32_precision
    yield
    MATMUL.fp32_precision, CONVOLUTION.fp32_precision = saved


def test_matrix_products_and_convolutions_are_set_apart(asked: Callable) -> None:
    for matmul, convolution in (("tf32", "ieee"), ("ieee", "tf32"), ("none", "none")):
        MATMUL.fp32_precision, CONVOLUTION.fp32_precision = matmul, convolution
        assert asked(False) is (matmul == "tf32")
        assert asked(True) is (convolution == "tf32")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_older_settings_count(asked: Callable) -> None:
    torch.set_float32_matmul_precision("high")
    assert asked(False)
    torch.set_float32_matmul_precision("highest")
    assert not asked(False)
    MATMUL.allow_tf32 = True
    assert asked(False)
    MATMUL.allow_tf32 = False
    assert not asked(False)
