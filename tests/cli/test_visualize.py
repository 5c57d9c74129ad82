"""visualize: the figures show what the model computed, where it is in the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli.helpers import SMALL_MODEL, error_of
from PIL import Image
from tolerance import MODEL_RELATIVE_ERROR, assert_close

import tnt
from tnt.cli import visualize
from tnt.cli.main import main
from tnt.cli.options import VisualizeOptions

DEIT = ["--deit-weights", "random", "--deit-kwargs", "depth", "2", "embed_dim", "48"]
DEIT += ["num_heads", "2"]


@pytest.fixture(scope="module")
def photo(photos: Path) -> str:
    return str(photos / "val" / "flower" / "00.png")


def test_three_pictures_of_tnt_beside_deit(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["visualize", photo, "--weights", "random", *SMALL_MODEL, "depth", "2", *DEIT]
    arguments += ["--patch-img-size", "64", "--blocks", "1", "2", "--maps", "5"]
    assert main([*arguments, "--device", "cpu", "--output", str(tmp_path)]) == 0
    names = ["patch_features.png", "tsne.png", "pixel_embeddings.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    for name in names:
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=float)
        assert min(picture.shape[:2]) > 300
        colourful = np.ptp(picture, axis=2) > 60  # neither paper nor ink
        assert 0.05 < colourful.mean() < 0.95


def test_features_are_those_of_the_model(photo: str, small_weights: Path) -> None:
    options = VisualizeOptions(image=photo, img_size=64, blocks=(1,))
    image = Image.open(photo)
    cpu = torch.device("cpu")
    features = visualize._features("TNT", options, str(small_weights), image, cpu)
    model, description = visualize.build(options, str(small_weights))
    batch = visualize._whole_image(model.eval(), description, image)
    assert batch.shape == (1, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_intermediates(batch, intermediates_only=True)
    assert_close(torch.from_numpy(features.patches[1]), maps[0][0], MODEL_RELATIVE_ERROR, "maps")
    assert features.pixels.keys() == {0, 1}
    assert features.pixels[1].shape == (16, 16)


def test_pixel_tokens_lie_where_their_pixels_are(photo: str) -> None:
    """An embedding that averages the 4x4 pixels around each token draws the image itself."""
    model = tnt.TNT(img_size=32, depth=1, embed_dim=48, inner_dim=24, num_heads_outer=2)
    tokens = []
    hooks = visualize._record_pixels(model, tokens)
    assert len(hooks) == 2
    with torch.no_grad():
        model.pixel_pos.zero_()
        model.pixel_embed.proj.bias.zero_()
        model.pixel_embed.proj.weight.zero_()
        model.pixel_embed.proj.weight[:, :, 3, 3] = 1.0  # the pixel in the middle of the kernel
        image = torch.rand(1, 3, 32, 32)
        model(image)
    drawn = visualize._pixel_map(tokens[0], model, (2, 2))
    expected = image[0].sum(0)[::4, ::4]
    assert_close(torch.from_numpy(drawn), expected, MODEL_RELATIVE_ERROR, "pixels")


def test_blocks_that_the_model_does_not_have(
    photo: str, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["visualize", photo, "--weights", small_weights, "--patch-img-size", "32"]
    message = error_of(capsys, *arguments, "--deit", "", "--output", tmp_path)
    assert "--blocks 6 12" in message and "has blocks 1 to 1" in message


def test_an_output_folder_that_cannot_be_made(
    photo: str, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["visualize", photo, "--weights", small_weights, "--patch-img-size", "32"]
    arguments += ["--deit", "", "--blocks", "1", "--output", tmp_path / "file" / "folder"]
    assert "cannot be made" in error_of(capsys, *arguments)
