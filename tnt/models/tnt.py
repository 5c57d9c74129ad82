"""Transformer in Transformer (arXiv 2103.00112) on fused kernels, with timm's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import LEGACY, PUBLISHED, Block
from .embed import PerChannel, PixelEmbed, Size
from .flow import add_pixels

POOLS = ("", "token", "avg")
Indices = Optional[Union[int, list[int], tuple[int, ...]]]


class TNT(nn.Module):
    """Transformer in Transformer: images (B, in_chans, H, W) to logits (B, num_classes).

    Floating images come normalised, as the models of timm take them; uint8 images are normalised by
    `mean` and `std` where the first kernel reads them.

        Y^l = inner(Y^{l-1});  Z^l = outer(Z^{l-1} + FC(Vec(Y^l)))            (Eqs. 6-10)

    Arguments are timm's; state-dict keys too. S = ceil(patch/first_stride)^2 pixel tokens per
    patch (16), so that Table 7's rows are (first_stride, inner_dim) = (2, 6) and (8, 96), and
    Table 6's are num_heads_inner = 1, 2, 4, 8.

    Args:
        img_size, patch_size: side in pixels, or (height, width).
        in_chans, num_classes: of the images and the head; num_classes 0 leaves out the head.
        global_pool: "token" (class token), "avg" (mean of patches) or "" (all tokens).
        embed_dim, inner_dim: widths D and C of the outer and inner flow.
        depth: number of blocks.
        num_heads_inner, num_heads_outer: must divide the widths.
        mlp_ratio: hidden width of the outer MLP over D (the inner one's is always 4).
        qkv_bias: bias on q, k and v in both flows.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, after
            the positions, after linear layers, on attention. The last two make the inner flow run
            unfused while training.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0; per patch in
            the inner flow, per image in the outer one.
        norm_layer: called as norm_layer(width, device=, dtype=); anything but a LayerNorm runs
            unfused.
        first_stride: of the 7x7 projection.
        legacy: the dialect of timm's tnt_s_legacy_patch16_224.
        use_patch_pos, use_pixel_pos: Table 5's positions, each may be left out.
        se: gate the outer MLP's channels (Sec. 2.4).
        mean, std: of uint8 images scaled to [0, 1], a number or one per channel; the published
            weights were trained with 0.5. `set_normalization` changes them.
        device, dtype: of the parameters.
    Raises: ValueError for sizes that do not fit together.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        inner_dim: int = 48,
        depth: int = 12,
        num_heads_inner: int = 4,
        num_heads_outer: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        first_stride: int = 4,
        legacy: bool = False,
        use_patch_pos: bool = True,
        use_pixel_pos: bool = True,
        se: bool = False,
        mean: PerChannel = 0.5,
        std: PerChannel = 0.5,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        dialect = LEGACY if legacy else PUBLISHED
        _check_pool(global_pool)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False

        self.pixel_embed = PixelEmbed(
            img_size, patch_size, in_chans, inner_dim, first_stride, dialect, mean, std, **factory
        )
        self.num_patches = self.pixel_embed.num_patches
        tile_h, tile_w = self.pixel_embed.new_patch_size
        num_pixel = tile_h * tile_w
        self.norm1_proj = norm_layer(num_pixel * inner_dim, **factory)
        self.proj = nn.Linear(num_pixel * inner_dim, embed_dim, **factory)
        self.norm2_proj = norm_layer(embed_dim, **factory)

        def position(used: bool, *shape: int) -> Optional[nn.Parameter]:
            return nn.Parameter(torch.zeros(1, *shape, **factory)) if used else None

        self.cls_token = position(True, 1, embed_dim)
        self.patch_pos = position(use_patch_pos, self.num_patches + 1, embed_dim)
        self.pixel_pos = position(use_pixel_pos, inner_dim, tile_h, tile_w)
        self.pos_drop = nn.Dropout(pos_drop_rate)

        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(
                inner_dim,
                embed_dim,
                num_pixel,
                num_heads_inner,
                num_heads_outer,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
                norm_layer=norm_layer,
                dialect=dialect,
                se=se,
                **factory,
            )
            for rate in rates
        )
        reduction = self.pixel_embed.feat_ratio()
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": reduction}
            for i in range(depth)
        ]
        self.norm = norm_layer(embed_dim, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _head(embed_dim, num_classes, **factory)

        for parameter in (self.cls_token, self.patch_pos, self.pixel_pos):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.apply(_init_weights)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay."""
        return {name for name in ("patch_pos", "pixel_pos", "cls_token") if self._has(name)}

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that sort parameters into stem and blocks, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|patch_pos|pixel_pos|pixel_embed|norm[12]_proj|proj",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward instead of keeping its activations."""
        self.grad_checkpointing = enable

    def set_normalization(self, mean: PerChannel, std: PerChannel) -> None:
        """Normalise uint8 images by other statistics, say those of a config of timm.

        Args:
            mean, std: of images scaled to [0, 1], a number or one per channel.
        Raises: ValueError unless they are finite, as many as the channels, and std positive.
        """
        self.pixel_embed.set_normalization(mean, std)

    def get_classifier(self) -> nn.Module:
        """The head: a Linear, or an Identity when num_classes is 0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the head by a new one, on the model's device and in its dtype.

        Raises: ValueError for an unknown pool.
        """
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.cls_token
        self.head = _head(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    def _start(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel tokens (B*N, S, C) and patch tokens (B, N+1, D) before the first block."""
        pixels = self.pixel_embed(images, self.pixel_pos)
        # class token and positions are what the projected pixels are added to
        if self.patch_pos is None:
            empty = self.cls_token.new_zeros(1, self.num_patches, self.embed_dim)
            tokens = torch.cat([self.cls_token, empty], dim=1)
        else:
            first, rest = self.patch_pos.split([1, self.num_patches], dim=1)
            tokens = torch.cat([self.cls_token + first, rest], dim=1)
        tokens = tokens.expand(images.shape[0], -1, -1)
        patches = add_pixels(self.norm1_proj, self.proj, self.norm2_proj, pixels, tokens)
        return pixels, self.pos_drop(patches)

    def _run_block(self, block: nn.Module, pixels: Tensor, patches: Tensor) -> tuple:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, pixels, patches, use_reentrant=False)
        return block(pixels, patches)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to normed tokens (B, N+1, D), the class token in row 0."""
        pixels, patches = self._start(x)
        for block in self.blocks:
            pixels, patches = self._run_block(block, pixels, patches)
        return self.norm(patches)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N+1, D) to logits, or to the pooled (B, D) when `pre_logits`."""
        if self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        elif self.global_pool == "token":
            x = x[:, 0]
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Patch tokens after chosen blocks.

        Args:
            x: images (B, in_chans, H, W).
            indices: the last n blocks for an integer, else the blocks of these numbers (negative
                ones count from the end); None for all.
            return_prefix_tokens: pair each with its class token (B, 1, D).
            norm: apply the final norm to each.
            stop_early: run no block after the last one chosen.
            output_fmt: "NCHW" for (B, D, rows, columns), "NLC" for (B, N, D).
            intermediates_only: leave out the final tokens.
        Returns: list of intermediates, or (final normed tokens (B, N+1, D), that list).
        Raises: ValueError for an unknown output_fmt or an index out of range.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(
                f"forward_intermediates: output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}"
            )
        wanted, last = take_indices(len(self.blocks), indices)
        pixels, patches = self._start(x)
        taken = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            pixels, patches = self._run_block(block, pixels, patches)
            if i in wanted:
                taken.append(self.norm(patches) if norm else patches)

        prefixes = [tokens[:, : self.num_prefix_tokens] for tokens in taken]
        taken = [tokens[:, self.num_prefix_tokens :] for tokens in taken]
        if output_fmt == "NCHW":
            rows, columns = self.pixel_embed.dynamic_feat_size(x.shape[-2:])
            taken = [
                tokens.transpose(1, 2).reshape(x.shape[0], -1, rows, columns).contiguous()
                for tokens in taken
            ]
        if return_prefix_tokens:
            taken = list(zip(taken, prefixes, strict=True))
        return taken if intermediates_only else (self.norm(patches), taken)

    def prune_intermediate_layers(
        self,
        indices: Union[int, list[int], tuple[int, ...]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the blocks (norm, head) that the chosen intermediates do not need.

        Returns: the block numbers that `indices` chose. Raises: ValueError out of range.
        """
        wanted, last = take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted


def take_indices(count: int, indices: Indices) -> tuple[list[int], int]:
    """Numbers of the chosen ones of `count` blocks, and the highest of them.

    Raises: ValueError when one is out of range or none is chosen.
    """
    indices = count if indices is None else indices
    if isinstance(indices, int):
        indices = list(range(-indices, 0)) or [count]
    wanted = [index + count if index < 0 else index for index in indices]
    if not wanted or any(not 0 <= index < count for index in wanted):
        raise ValueError(
            f"TNT: indices must choose from the {count} blocks, got {list(indices)}; "
            f"pass a number up to {count} or block numbers from {-count} to {count - 1}"
        )
    return wanted, max(wanted)


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        raise ValueError(f"TNT: global_pool must be one of {POOLS}, got {global_pool!r}")


def _head(dim: int, num_classes: int, **factory: Any) -> nn.Module:
    return nn.Linear(dim, num_classes, **factory) if num_classes > 0 else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
