"""`python -m tnt visualize IMAGE`: Figs. 4 and 5 of the paper as PNG files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from sklearn.manifold import TSNE
from timm.data import create_transform
from torch import Tensor, nn

from .data import read_image, to_mode
from .errors import UserError
from .models import Description, autocast, build, choose_device, data_config
from .options import VisualizeOptions

_INK, _FAINT = "#1a1a1a", "#8a8a8a"
_COLOURS = {"TNT": "#c1440e", "DeiT": "#2a6f97"}
_STYLE = {"font.size": 9, "text.color": _INK, "axes.edgecolor": _FAINT}


class Features(NamedTuple):
    """What one model computed from one image."""

    label: str
    source: str  # model and weights
    patches: dict[int, np.ndarray]  # block, from 1: (D, rows, columns)
    pixels: dict[int, np.ndarray]  # block, 0 for the embedding: (rows * h, columns * w); TNT only


def run(options: VisualizeOptions) -> list[Path]:
    """Write the figures into the output folder; returns their paths."""
    image = read_image(options.image)
    device = choose_device(options.device)
    large = replace(options, img_size=options.patch_img_size)
    tnt_large = _features("TNT", large, options.weights, image, device)
    contestants = [tnt_large]
    if options.deit:
        deit = replace(large, model=options.deit, model_kwargs=options.deit_kwargs)
        contestants.insert(0, _features("DeiT", deit, options.deit_weights, image, device))
    tnt_small = _features("TNT", options, options.weights, image, device)
    folder = Path(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}") from error
    with rc_context(_STYLE):
        figures = {
            "patch_features.png": draw_patch_features(image, contestants, options),
            "tsne.png": draw_tsne(contestants, options.seed),
            "pixel_embeddings.png": draw_pixel_embeddings(image, tnt_small),
        }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=160, bbox_inches="tight", facecolor="white")
        print(paths[-1])
    return paths


# ---- features ------------------------------------------------------------------------------------


@torch.inference_mode()
def _features(
    label: str,
    options: VisualizeOptions,
    weights: str,
    image: Image.Image,
    device: torch.device,
) -> Features:
    model, description = build(options, weights)
    depth = len(getattr(model, "blocks", []))
    wrong = [block for block in options.blocks if not 1 <= block <= depth]
    if wrong or not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"--blocks {' '.join(map(str, wrong))}: {description.model} has blocks 1 to {depth}"
        )
    model = model.to(device).eval()
    batch = _whole_image(model, description, image).to(device)
    inner: list[Tensor] = []
    is_tnt = hasattr(model, "pixel_embed")
    hooks = _record_pixels(model, inner) if is_tnt else []
    with autocast(device, options.amp):
        maps = model.forward_intermediates(
            batch, indices=list(range(depth)), norm=False, intermediates_only=True
        )
    for hook in hooks:
        hook.remove()
    patches = {block: maps[block - 1][0].float().cpu().numpy() for block in options.blocks}
    grid = tuple(maps[0].shape[-2:])
    pixels = {i: _pixel_map(tokens, model, grid) for i, tokens in enumerate(inner)}
    return Features(label, f"{description.model}\nweights: {weights}", patches, pixels)


def _whole_image(model: nn.Module, description: Description, image: Image.Image) -> Tensor:
    """The centre of the image, none of its shorter side lost, as a batch of one."""
    config = data_config(model, description)
    transform = create_transform(**{**config, "crop_pct": 1.0})
    return transform(to_mode(image, description.in_chans)).unsqueeze(0)


def _record_pixels(model: nn.Module, into: list[Tensor]) -> list[Any]:
    """Hooks that append pixel tokens (N, S, C) after the embedding and after every block."""

    def after_embedding(_: nn.Module, __: Any, tokens: Tensor) -> None:
        into.append(tokens)

    def after_block(_: nn.Module, __: Any, out: tuple[Tensor, Tensor]) -> None:
        into.append(out[0])

    first = model.pixel_embed.register_forward_hook(after_embedding)
    return [first, *(block.register_forward_hook(after_block) for block in model.blocks)]


def _pixel_map(tokens: Tensor, model: nn.Module, grid: tuple[int, int]) -> np.ndarray:
    """Pixel tokens (N, S, C), averaged over channels and put where they are in the image."""
    height, width = model.pixel_embed.new_patch_size
    mean = tokens.float().mean(dim=-1).reshape(*grid, height, width)
    return mean.permute(0, 2, 1, 3).reshape(grid[0] * height, grid[1] * width).cpu().numpy()


# ---- figures -------------------------------------------------------------------------------------


def _stretch(values: np.ndarray) -> np.ndarray:
    """To 0..1 between the first and the last per cent of the values."""
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _centre(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _bare(axes: Any, title: Optional[str] = None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title is not None:
        axes.set_title(title, fontsize=9, color=_INK, pad=3)


def draw_patch_features(
    image: Image.Image, contestants: list[Features], options: VisualizeOptions
) -> Figure:
    """Fig. 4(a): for each model a row per block of feature maps drawn at random."""
    blocks, columns = options.blocks, min(options.maps, 12)
    per_block = -(-options.maps // columns)
    rows = len(contestants) * len(blocks) * per_block
    figure = Figure(figsize=(1.9 + 0.85 * columns, 0.3 + 0.92 * rows), layout="none")
    outer = figure.add_gridspec(
        1, 2, width_ratios=[1.6, 0.9 * columns], wspace=0.12, left=0, right=1, top=0.95, bottom=0
    )
    photo = figure.add_subplot(outer[0])
    photo.imshow(_centre(image), cmap="gray")
    _bare(photo, "image")
    photo.set_anchor("N")
    sources = "\n\n".join(f"{features.label}: {features.source}" for features in contestants)
    note = f"{sources}\n\n{options.patch_img_size} pixels"
    photo.text(0, -0.06, note, transform=photo.transAxes, va="top", fontsize=6.5, color=_FAINT)
    models = outer[1].subgridspec(len(contestants), 1, hspace=0.14)
    for features, cell in zip(contestants, models):
        rng = np.random.default_rng(options.seed)
        grid = cell.subgridspec(len(blocks) * per_block, columns, wspace=0.05, hspace=0.05)
        for i, block in enumerate(blocks):
            maps = features.patches[block]
            chosen = rng.choice(len(maps), min(options.maps, len(maps)), replace=False)
            for j, channel in enumerate(chosen):
                axes = figure.add_subplot(grid[i * per_block + j // columns, j % columns])
                axes.imshow(_stretch(maps[channel]), cmap="viridis", interpolation="nearest")
                _bare(axes)
                if j == 0:
                    axes.set_ylabel(f"block {block}", color=_INK, fontsize=9)
                if i == 0 and j == 0:
                    axes.set_title(
                        features.label,
                        loc="left",
                        fontsize=11,
                        fontweight="bold",
                        color=_COLOURS[features.label],
                    )
    return figure


def draw_tsne(contestants: list[Features], seed: int) -> Figure:
    """Fig. 4(b): every feature map of the last shown block as a point, some of them drawn there."""
    figure = Figure(figsize=(5.2 * len(contestants), 5.6), layout="constrained")
    row = figure.subplots(1, len(contestants), squeeze=False)[0]
    for features, axes in zip(contestants, row):
        block, colour = max(features.patches), _COLOURS[features.label]
        maps = features.patches[block]
        points = _embed(maps, seed)
        _bare(axes)
        axes.set_title(
            f"{features.label}: the {len(maps)} feature maps of block {block}",
            fontsize=10,
            color=colour,
            fontweight="bold",
        )
        axes.scatter(*points.T, s=10, color=colour, alpha=0.8, linewidths=0)
        for index in _apart(points, 0.085):
            half = 0.036
            (x, y) = points[index]
            box = (x - half, x + half, y - half, y + half)
            axes.imshow(
                _stretch(maps[index]), extent=box, cmap="viridis", interpolation="nearest", zorder=3
            )
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    return figure


def _apart(points: np.ndarray, distance: float) -> list[int]:
    """Numbers of points of which no two are nearer than `distance` on both axes."""
    chosen: list[int] = []
    for index, point in enumerate(points):
        if all(np.abs(point - points[other]).max() >= distance for other in chosen):
            chosen.append(index)
    return chosen


def _embed(maps: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of feature maps (D, rows, columns), each standardised, to (D, 2) within 0..1."""
    flat = maps.reshape(len(maps), -1)
    flat = (flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 1e-6)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    # for some hundred points the exact gradient is faster than the approximate one
    tsne = TSNE(2, perplexity=perplexity, init="pca", method="exact", random_state=seed)
    points = tsne.fit_transform(flat)
    return (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-12)


def draw_pixel_embeddings(image: Image.Image, features: Features) -> Figure:
    """Fig. 5: averaged pixel embeddings after the embedding and after each shown block."""
    shown = [0, *sorted(features.patches)]
    figure = Figure(figsize=(2.5 * (1 + len(shown)), 2.7), layout="constrained")
    row = figure.subplots(1, 1 + len(shown))
    row[0].imshow(_centre(image), cmap="gray")
    _bare(row[0], "image")
    for axes, block in zip(row[1:], shown):
        axes.imshow(_stretch(features.pixels[block]), cmap="magma", interpolation="nearest")
        _bare(axes, f"block {block}" if block else "pixel embedding")
    return figure
