"""How float32 products may be computed: PyTorch's own settings decide for our kernels too."""

from __future__ import annotations

import torch


def allows_tf32(convolution: bool = False) -> bool:
    """Whether PyTorch's settings let matrix products (or convolutions) on a GPU use TF32.

    Those are `torch.backends.cuda.matmul.fp32_precision` and `torch.backends.cudnn.conv
    .fp32_precision`, which the older `allow_tf32` and `set_float32_matmul_precision` also set.
    Read at every call, as PyTorch reads them. By default convolutions may, matrix products may not.
    """
    settings = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul
    return settings.fp32_precision == "tf32"
