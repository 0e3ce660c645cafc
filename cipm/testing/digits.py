"""Train small models on scikit-learn's handwritten digits, which come with it: 1,797 images of 8×8 pixels, 10 classes.

Source: the test set of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

SPLIT_SEED = 0
HELD_OUT = 0.4
PROBE_ROWS = 1000


@dataclass(frozen=True)
class Digits:
    """Images [rows, 1, 8, 8] of brightness 0 to 1 and their classes, split once and for all."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: Adam under a one-cycle schedule, images moved by up to `shift` pixels."""

    epochs: int
    rate: float
    decay: float = 1e-4
    batch: int = 64
    shift: int = 0
    seed: int = 0


def load() -> Digits:
    """Return the digits, two fifths of them held out, every class in proportion."""
    pixels, classes = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, classes.astype(np.int64), test_size=HELD_OUT, random_state=SPLIT_SEED,
                             stratify=classes)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Digits(train_x, train_y, test_x, test_y)


def train(model: nn.Module, digits: Digits, recipe: Recipe, logits: Callable[[nn.Module, Tensor], Tensor]) -> float:
    """Train the model in place; return its accuracy on the held-out digits, in evaluation mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    steps = recipe.epochs * len(range(0, len(digits.train_y), recipe.batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    for x, y in _batches(digits, recipe):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits(model, x), y).backward()
        optimizer.step()
        schedule.step()
    return accuracy(model.eval(), digits, logits)


def accuracy(model: nn.Module, digits: Digits, logits: Callable[[nn.Module, Tensor], Tensor]) -> float:
    """Return the share of the held-out digits that the model tells right."""
    with torch.no_grad():
        return float((logits(model, digits.test_x).argmax(1) == digits.test_y).float().mean())


def probe_rows(digits: Digits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, classes and whether each was held out: all that were, and training rows up to PROBE_ROWS, mixed."""
    more = PROBE_ROWS - len(digits.test_y)
    x = torch.cat([digits.test_x, digits.train_x[:more]])
    y = torch.cat([digits.test_y, digits.train_y[:more]])
    order = np.random.default_rng(SPLIT_SEED).permutation(PROBE_ROWS)
    held_out = order < len(digits.test_y)
    return x.numpy()[order], y.numpy()[order], held_out


def _batches(digits: Digits, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(digits.train_y), generator=generator).split(recipe.batch):
            yield _moved(digits.train_x[rows], recipe.shift, generator), digits.train_y[rows]


def _moved(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return the images moved up to `most` pixels along each axis, each by its own amount, black coming in."""
    if most == 0:
        return images
    rows, _, height, width = images.shape
    by = torch.randint(0, 2 * most + 1, (2, rows, 1), generator=generator)
    down, right = by[0] + torch.arange(height), by[1] + torch.arange(width)
    framed = F.pad(images, (most,) * 4)[:, 0]
    return framed[torch.arange(rows)[:, None, None], down[:, :, None], right[:, None, :]][:, None]
