"""One encoder for each part of an observation: vectors as they are, indices as one-hot, images by a CNN."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import ConfigError
from ppo_kl.observations import Obs, Part, each_part
from ppo_kl.policies.networks import HIDDEN_GAIN, initialised

NATURE_LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel, stride."""
NATURE_FEATURES = 512
IMPALA_CHANNELS = (16, 32, 32)
IMPALA_FEATURES = 256


class Encoder(nn.Module):
    """Observations -> features side by side, in the order of the parts, `[B, num_features]`.

    Args:
        parts: of the observation.
        config: which CNN, and how images lie.
        generator: on the CPU, the initialisation's own random stream.
    """

    def __init__(self, parts: tuple[Part, ...], config: PolicyConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.parts = nn.ModuleList([encoder_of(part, config, generator) for part in parts])
        self.num_features = sum(int(part.num_features) for part in self.parts)  # type: ignore[arg-type, misc]

    def forward(self, obs: Obs) -> Tensor:
        """A tensor or a dict of them, each `[B, *shape]` -> `[B, num_features]`."""
        features = [encode(x) for encode, (_, x) in zip(self.parts, each_part(obs), strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, -1)


def encoder_of(part: Part, config: PolicyConfig, generator: torch.Generator) -> nn.Module:
    """The encoder of one part; it says its `num_features`."""
    if part.kind == "index":
        return OneHot(part)
    if part.kind == "vector" or config.image_encoder == "flat":
        return Flat(part)
    return ImageEncoder(part, config, generator)


class Flat(nn.Module):
    """`[B, *shape]` -> `[B, prod(shape)]`; an image's numbers are scaled to [0, 1]."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.num_features, self.scale = math.prod(part.shape), part.scale

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *shape]` -> `[B, num_features]`."""
        flat = x.reshape(len(x), -1).float()
        return flat if self.scale == 1 else flat / self.scale


class OneHot(nn.Module):
    """Each number of Discrete or MultiDiscrete as 0 … 0 1 0 … 0, side by side."""

    offsets: Tensor

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.num_features = sum(part.sizes)
        offsets = [0, *itertools.accumulate(part.sizes[:-1])]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *shape]` int64 from 0 -> `[B, Σ sizes]`."""
        places = x.reshape(len(x), -1) + self.offsets
        return torch.zeros(len(x), self.num_features, device=x.device).scatter_(1, places, 1.0)


class ImageEncoder(nn.Module):
    """Images of any layout, to channels first and [0, 1], through a CNN and one linear layer with ReLU.

    Source: Mnih 2015 (Nature 518), methods, for `nature`; Espeholt 2018 (arXiv:1802.01561), figure 3, for `impala`.
    """

    def __init__(self, part: Part, config: PolicyConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = part.scale
        self.order = channels_first(part.shape, config.image_layout)
        sizes = [part.shape[axis] for axis in self.order]
        channels, height, width = math.prod(sizes[:-2]), *sizes[-2:]
        build, smallest, self.num_features = _CNNS[config.image_encoder]
        if min(height, width) < smallest:
            called = f"observation {part.key!r}" if part.path else "the observation"
            raise ConfigError(
                f"policy.image_encoder={config.image_encoder!r}: needs images of {smallest} × {smallest} pixels or "
                f"more, {called} of shape {part.shape} has {height} × {width}; use impala or flat, or a wrapper as "
                "ResizeObservation",
                "image_encoder",
            )
        self.cnn = build(channels, generator)
        out = self.cnn(torch.zeros(1, channels, height, width)).numel()
        self.last = initialised(nn.Linear, out, self.num_features, gain=HIDDEN_GAIN, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *shape]` -> `[B, num_features]`."""
        x = x.permute(0, *(axis + 1 for axis in self.order))
        x = x.reshape(len(x), -1, *x.shape[-2:]).float()
        features: Tensor = self.last(self.cnn(x / self.scale if self.scale != 1 else x).flatten(1)).relu()
        return features


def channels_first(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The axes of an image in the order …, height, width, with everything that counts as channels before.

    Args:
        shape: two dimensions are height and width; a fourth, in front, stacks images over time.
        layout: `chw`, `hwc`, or `auto`: channels are the last axis where that is the smallest of the last three.
    """
    dims = len(shape)
    if dims == 2:
        return (0, 1)
    last_is_smallest = shape[-1] < min(shape[-3], shape[-2])
    if layout == "hwc" or (layout == "auto" and last_is_smallest):
        return (*range(dims - 3), dims - 1, dims - 3, dims - 2)
    return tuple(range(dims))


def _nature(channels: int, generator: torch.Generator) -> nn.Module:
    layers: list[nn.Module] = []
    for out, kernel, stride in NATURE_LAYERS:
        conv = initialised(nn.Conv2d, channels, out, kernel, stride, gain=HIDDEN_GAIN, generator=generator)
        layers += [conv, nn.ReLU()]
        channels = out
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        first, second = (_conv3(channels, channels, generator) for _ in range(2))
        self.layers = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same."""
        out: Tensor = x + self.layers(x)
        return out


def _impala(channels: int, generator: torch.Generator) -> nn.Module:
    layers: list[nn.Module] = []
    for out in IMPALA_CHANNELS:
        layers += [_conv3(channels, out, generator), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [Residual(out, generator), Residual(out, generator)]
        channels = out
    return nn.Sequential(*layers, nn.ReLU())


def _conv3(channels: int, out: int, generator: torch.Generator) -> nn.Module:
    return initialised(nn.Conv2d, channels, out, 3, padding=1, gain=HIDDEN_GAIN, generator=generator)


_CNNS = {"nature": (_nature, 36, NATURE_FEATURES), "impala": (_impala, 1, IMPALA_FEATURES)}
"""How to build it, the fewest pixels of a side, and how many features come out."""
