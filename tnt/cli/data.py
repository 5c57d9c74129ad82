"""Images, their transforms, and the order in which a run takes them.

Everything random about a sample is a function of (seed, place of the sample in the run): not of
the process that reads it, nor of what was read before. So a run that is killed and resumed, or
spread over more processes, sees the same pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, Sampler

from .errors import UserError
from .options import DataOptions
from .parallel import World

PADDING = -1
"""Target of samples that only fill the last batches of an evaluation."""
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "test"),
}


def seed_everything(*key: int, device: Optional[torch.device] = None) -> None:
    """Seed the generators of Python, numpy, torch and `device` with a mixture of the numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (timm's augmentation draws from it)
    # torch.manual_seed would also queue a call for each GPU that is not in use yet
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def read_image(file: Any, name: Optional[str] = None) -> Image.Image:
    """An image from a path or an open file, decoded. Raises: UserError naming it."""
    name = str(file) if name is None else name
    try:
        image = Image.open(file)
        image.load()
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is no image; replace or delete it") from error
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file; check the path") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be decoded ({error}); replace or delete it") from error
    return image


def to_mode(image: Image.Image, in_chans: int) -> Image.Image:
    """The image as RGB, or grey for one channel."""
    return image.convert("L" if in_chans == 1 else "RGB")


# ---- datasets ------------------------------------------------------------------------------------


def _flowers102(root: str, training: bool, download: bool) -> Dataset:
    # Table 2 trains on what torchvision calls train and val: 2,040 images
    flowers, splits = torchvision.datasets.Flowers102, ["train", "val"] if training else ["test"]
    parts = [flowers(root, split, download=download) for split in splits]
    whole = ConcatDataset(parts)
    whole.classes = parts[0].classes
    return whole


def _pets(root: str, training: bool, download: bool) -> Dataset:
    split = "trainval" if training else "test"
    return torchvision.datasets.OxfordIIITPet(root, split, download=download)


_OWN_DATASETS = {"torch/flowers102": _flowers102, "torch/pets": _pets}


def open_dataset(options: DataOptions, split: str, classes: Optional[list[str]] = None) -> Dataset:
    """The undecoded images of a split, of timm's readers or torchvision's datasets.

    Args:
        split: "train", "val" or the dataset's own name of another one.
        classes: names in the order of the class numbers; folders of other names are refused.
    Raises: UserError for a path, dataset or split that is not there, or without images.
    """
    root, name = Path(options.data), options.dataset
    downloads = options.download and name.startswith("torch/")
    if not root.exists() and not downloads:
        raise UserError(f"DATA {root}: no such folder; check the path")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name in _OWN_DATASETS:
            return _OWN_DATASETS[name](str(root), split in _SPLITS["train"], options.download)
        if name.startswith(("wds/", "tfds/", "hfids/")):
            raise UserError(f"--dataset {name} is a stream, in which a run cannot be resumed")
        if name and not name.startswith(("torch/", "hfds/")):
            raise UserError(f"--dataset {name!r} must begin with torch/ or hfds/, or be empty")
        folder = str(root) if name else str(_split_folder(root, split))
        more = {"download": True} if downloads else {}
        dataset = create_dataset(name, folder, split=split, search_split=False, **more)
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        fetches = name.startswith("torch/") and not downloads
        remedy = "; --download fetches it" if fetches else ""
        raise UserError(f"DATA {root} ({split}): {error}{remedy}") from error
    if classes is not None and not name:
        _number_as(dataset, classes, folder)
    return dataset


def download_once(options: DataOptions, splits: tuple[str, ...], world: World) -> None:
    """With --download, let one process of many fetch the dataset before the others open it."""
    if options.download and world.size > 1:
        if world.main:
            for split in splits:
                open_dataset(options, split)
        world.wait()


def _split_folder(root: Path, split: str) -> Path:
    names = next((names for names in _SPLITS.values() if split in names), (split,))
    for name in (split, *names):
        if (root / name).is_dir():
            return root / name
    inside = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    raise UserError(
        f"DATA {root} has no folder {' or '.join(names)}; it holds {shown or 'nothing'}. Put one "
        f"folder per class into {root / split}, or name another split"
    )


def _number_as(dataset: Dataset, classes: list[str], folder: str) -> None:
    """Give the samples of a folder the class numbers of another split."""
    own = dataset.reader.class_to_idx
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise UserError(
            f"{folder} has {len(own)} classes, {len(unknown)} of them ({', '.join(unknown[:5])}) "
            f"not among the {len(classes)} known ones ({', '.join(classes[:5])}, ...); rename or "
            f"remove what does not belong there"
        )
    number = {own[name]: classes.index(name) for name in own}
    dataset.target_transform = number.__getitem__


def class_names(dataset: Dataset) -> Optional[list[str]]:
    """Names by class number, where the dataset has them."""
    indices = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if indices:
        return [str(name) for name in sorted(indices, key=indices.get)]
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name) for name in names]


class Images(Dataset):
    """(transformed image, target) of keys (index, draw); the draw seeds what is random.

    An index beyond the source is padding: the first image with the target PADDING.
    Raises: UserError naming the file of an image that cannot be read.
    """

    def __init__(self, source: Dataset, transform: Any, in_chans: int, seed: int = 0) -> None:
        self.source = source
        self.transform = transform
        self.in_chans = in_chans
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = key
        padding = index >= len(self.source)
        image, target = self._read(0 if padding else index)
        seed_everything(self.seed, draw)
        image = self.transform(to_mode(image, self.in_chans))
        return image, PADDING if padding else int(target)

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not hasattr(self.source, "reader"):
            try:
                return self.source[index]
            except (OSError, SyntaxError) as error:
                raise UserError(f"image {index} of the dataset cannot be read: {error}") from error
        try:
            file, target = self.source.reader[index]
        except OSError as error:
            raise UserError(f"{self.source.filename(index)} cannot be read: {error}") from error
        with file:
            image = read_image(file, self.source.filename(index, absolute=True))
        renumber = self.source.target_transform
        return image, target if renumber is None else renumber(target)


# ---- order ---------------------------------------------------------------------------------------


class TrainingOrder(Sampler):
    """Micro-batches of one process, from any step of any epoch on.

    The samples of a step are positions [step * batch, (step + 1) * batch) of one global order;
    micro-batch m of M takes every M-th of them, so that repeated copies of an image part, and
    process r of R works on micro-batches r, r + R, ...
    """

    def __init__(
        self, dataset: Dataset, batch: int, micro_batch: int, repeats: int, seed: int, world: World
    ) -> None:
        self.batch, self.seed, self.world = batch, seed, world
        self.micros = batch // micro_batch
        if repeats > 1:
            self.order: Any = RepeatAugSampler(dataset, 1, 0, num_repeats=repeats)
        else:
            self.order = DistributedSampler(dataset, 1, 0)
        self.epoch = self.first_step = 0

    @property
    def steps(self) -> int:
        """Steps of an epoch; the samples that fill no batch are left out."""
        return len(self.order) // self.batch

    def start_at(self, epoch: int, step: int) -> None:
        """Begin the next iteration at this step of this epoch."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micros // self.world.size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.order.set_epoch(self.seed * 1_000_003 + self.epoch)
        indices = list(self.order)
        for step in range(self.first_step, self.steps):
            for micro in range(self.world.rank, self.micros, self.world.size):
                places = range(step * self.batch + micro, (step + 1) * self.batch, self.micros)
                yield [(indices[i], self.epoch * len(indices) + i) for i in places]


def evaluation_order(count: int, batch: int, world: World) -> list[list[tuple[int, int]]]:
    """Batches of one process over all samples once, padded to equal numbers on all processes."""
    padded = -(-count // world.size) * world.size
    keys = [(index, 0) for index in range(world.rank, padded, world.size)]
    return [keys[i : i + batch] for i in range(0, len(keys), batch)]


def loader(images: Images, batches: Union[Sampler, list], workers: int) -> DataLoader:
    """Batches of uint8 images (B, Cin, H, W) and targets (B,)."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=fast_collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
