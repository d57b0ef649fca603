"""Encoders: what each part of an observation becomes before the first hidden layer."""

import numpy as np
import pytest
import torch
from torch import nn

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import ConfigError
from ppo_kl.observations import Part
from ppo_kl.policies.encoders import Encoder, channels_first

IMAGE = Part((), "image", (3, 40, 48), "uint8", scale=255.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder(*parts: Part, **settings) -> Encoder:
    return Encoder(parts, PolicyConfig(**settings), seeded())


def pictures(n: int, *shape: int) -> torch.Tensor:
    return torch.randint(256, (n, *shape), generator=seeded(1), dtype=torch.uint8)


def test_a_vector_is_flattened_row_by_row():
    x = torch.arange(12.0).view(2, 2, 3)
    assert encoder(Part((), "vector", (2, 3)))(x).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_scalar_is_a_vector_of_one():
    assert encoder(Part((), "vector", ()))(torch.tensor([3.0, 4.0])).tolist() == [[3.0], [4.0]]


def test_indices_become_one_hot_side_by_side():
    one = encoder(Part((), "index", (), "int64", (3,), (0,)))
    assert one(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    two = encoder(Part((), "index", (2,), "int64", (2, 3), (0, 0)))
    assert two(torch.tensor([[1, 2], [0, 0]])).tolist() == [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]


def test_parts_stand_side_by_side_in_their_order():
    both = encoder(Part(("a",), "index", (), "int64", (2,), (0,)), Part(("b",), "vector", (2,)))
    assert both.num_features == 4
    obs = {"a": torch.tensor([1]), "b": torch.tensor([[5.0, 6.0]])}
    assert both(obs).tolist() == [[0, 1, 5, 6]]


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((84, 84), "auto", (0, 1)),
        ((4, 84, 84), "auto", (0, 1, 2)),
        ((84, 84, 3), "auto", (2, 0, 1)),
        ((210, 160, 3), "auto", (2, 0, 1)),
        ((3, 3, 3), "auto", (0, 1, 2)),  # nothing says which; as torch has it
        ((84, 84, 3), "chw", (0, 1, 2)),
        ((3, 84, 84), "hwc", (2, 0, 1)),
        ((4, 84, 84, 3), "auto", (0, 3, 1, 2)),  # frames of colour pictures: every frame's channels
        ((4, 3, 84, 84), "auto", (0, 1, 2, 3)),
    ],
)
def test_which_axes_are_channels_height_and_width(shape, layout, expected):
    assert channels_first(shape, layout) == expected


@pytest.mark.parametrize("image_encoder", ["nature", "impala"])
def test_channels_first_and_last_give_the_same_features_after_transposing(image_encoder):
    x = pictures(2, 3, 40, 48)
    chw = encoder(IMAGE, image_encoder=image_encoder)
    hwc = encoder(Part((), "image", (40, 48, 3), "uint8", scale=255.0), image_encoder=image_encoder)
    torch.testing.assert_close(chw(x), hwc(x.permute(0, 2, 3, 1)))


@pytest.mark.parametrize("image_encoder", ["nature", "impala", "flat"])
def test_pixels_are_scaled_to_one_exactly_once(image_encoder):
    x = pictures(2, 3, 40, 48)
    of_bytes = encoder(IMAGE, image_encoder=image_encoder)(x)
    shares = Part((), "image", (3, 40, 48), scale=1.0)
    torch.testing.assert_close(encoder(shares, image_encoder=image_encoder)(x / 255), of_bytes)
    large = Part((), "image", (3, 40, 48), scale=255.0)
    torch.testing.assert_close(encoder(large, image_encoder=image_encoder)(x.float()), of_bytes)
    if image_encoder == "flat":
        assert torch.equal(of_bytes, x.flatten(1) / 255)


def test_frames_of_pictures_are_channels():
    # Four frames of 40 × 48 × 3 are one picture of 12 channels, frame by frame.
    x = pictures(2, 4, 40, 48, 3)
    stacked = encoder(Part((), "image", (4, 40, 48, 3), "uint8", scale=255.0))
    one = encoder(Part((), "image", (12, 40, 48), "uint8", scale=255.0))
    torch.testing.assert_close(stacked(x), one(x.permute(0, 1, 4, 2, 3).reshape(2, 12, 40, 48)))


def test_nature_is_the_network_of_its_paper():
    # 84 × 84: 8×8 stride 4 gives 20 × 20, 4×4 stride 2 gives 9 × 9, 3×3 gives 7 × 7 of 64 channels: 3,136 to 512.
    net = encoder(Part((), "image", (4, 84, 84), "uint8", scale=255.0)).parts[0]
    shapes = [tuple(layer.weight.shape) for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136)]


def test_impala_has_three_blocks_of_one_and_two_times_two_convolutions():
    net = encoder(Part((), "image", (4, 64, 64), "uint8", scale=255.0), image_encoder="impala").parts[0]
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [16] * 5 + [32] * 10
    # Three max-pools with stride 2: 64 → 32 → 16 → 8.
    assert net.last.weight.shape == (256, 32 * 8 * 8)


@pytest.mark.parametrize("shape", [(3, 35, 84), (3, 84, 35), (20, 20, 3), (10, 10)])
def test_an_image_smaller_than_the_kernels_need_is_refused_with_both_sizes(shape):
    part = Part(("cam",), "image", shape, "uint8", scale=255.0)
    with pytest.raises(ConfigError, match=r"'nature'.*36 × 36") as error:
        encoder(part)
    assert f"'cam' of shape {shape}" in str(error.value)
    for other in ("impala", "flat"):
        assert encoder(part, image_encoder=other)(pictures(2, *shape)).shape[0] == 2


@pytest.mark.parametrize("image_encoder", ["nature", "impala"])
def test_making_one_leaves_torchs_own_random_stream_alone(image_encoder):
    before = torch.get_rng_state()
    first, again = encoder(IMAGE, image_encoder=image_encoder), encoder(IMAGE, image_encoder=image_encoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("image_encoder", ["nature", "impala"])
def test_each_pixel_matters(image_encoder):
    net, x = encoder(IMAGE, image_encoder=image_encoder), torch.rand(1, 3, 40, 48, generator=seeded()) * 255
    (slope,) = torch.autograd.grad(net(x.requires_grad_()).square().sum(), x)
    seen = (slope != 0).float().mean().item()
    # Nature's strides leave out the last rows and columns: 40 − 36 = 4 of 40, and (48 − 4) / 4 = 11, so 44 of 48.
    assert seen > 0.75 if image_encoder == "nature" else seen > 0.99
    assert np.isfinite(slope.numpy()).all()
