import pytest
import torch

from components.train.augment import augment_images, warp_images
from components.train.config import AugmentConfig


def images(count=4):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def identity(count, shift_x=0.0):
    maps = torch.eye(2, 3).repeat(count, 1, 1)
    maps[:, 0, 2] = shift_x
    return maps


def test_nothing_switched_on_changes_nothing():
    assert augment_images(AugmentConfig(), images()) is not None
    assert torch.equal(augment_images(AugmentConfig(), images()), images())


def test_a_map_of_one_pixel_moves_the_image_by_one_pixel():
    moved = warp_images(images(), identity(4, shift_x=1.0))
    torch.testing.assert_close(moved[..., 1:], images()[..., :-1], atol=1e-5, rtol=0)  # bilinear sampling in fp32


@pytest.mark.parametrize("values", [{"rotation": 20}, {"shift": 0.2}, {"crop": 0.4}, {"color": 0.3}, {"noise": 0.1}])
def test_each_change_is_drawn_for_each_sample(values):
    same = images(1).repeat(3, 1, 1, 1)
    changed = augment_images(AugmentConfig.model_validate(values), same)
    assert changed.shape == same.shape
    assert not torch.equal(changed[0], changed[1])
    assert torch.isfinite(changed).all()


def test_a_flip_mirrors_left_and_right():
    torch.manual_seed(0)
    changed = augment_images(AugmentConfig(flip=True), images(16))
    mirrored = [torch.allclose(new, old.flip(-1), atol=1e-5) for new, old in zip(changed, images(16), strict=True)]
    kept = [torch.allclose(new, old, atol=1e-5) for new, old in zip(changed, images(16), strict=True)]
    assert any(mirrored) and any(kept)
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))


def test_the_same_generator_state_gives_the_same_changes():
    config = AugmentConfig(rotation=10, shift=0.1, noise=0.1)
    torch.manual_seed(5)
    first = augment_images(config, images())
    torch.manual_seed(5)
    assert torch.equal(first, augment_images(config, images()))
