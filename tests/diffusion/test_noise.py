"""Each kind of noise has the property it is used for, and a generator of its own decides it."""

import torch
from torch import Tensor

from diffusion_lora.diffusion.noise import perturbed, with_offset, with_pyramid


def white(pictures: int = 64) -> Tensor:
    return torch.randn(pictures, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def generator(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_offset_noise_moves_whole_channels() -> None:
    moved = with_offset(white(), 0.5, generator()) - white()
    assert torch.allclose(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-5)
    assert abs(moved[:, :, 0, 0].std() - 0.5) < 0.05


def test_pyramid_noise_is_smoother_has_unit_size_and_depends_on_no_neighbour() -> None:
    smooth = with_pyramid(white(), 0.8, 6, generator())
    assert torch.allclose(smooth.std(dim=(1, 2, 3)), torch.ones(64), atol=1e-5)
    near = lambda noise: (noise[..., 1:] * noise[..., :-1]).mean()  # noqa: E731
    assert abs(near(white())) < 0.02
    assert near(smooth) > 0.3
    assert torch.equal(with_pyramid(white(), 0.0, 6, generator()), white() / white().std(dim=(1, 2, 3), keepdim=True))
    louder = white()
    louder[0] *= 9
    assert torch.equal(with_pyramid(louder, 0.8, 6, generator())[1:], smooth[1:])
    assert not torch.equal(with_pyramid(white(), 0.8, 1, generator()), smooth)


def test_perturbation_adds_independent_noise() -> None:
    added = perturbed(white(), 0.1, generator()) - white()
    assert abs(added.std() - 0.1) < 0.01
    assert abs((added * white()).mean()) < 0.01


def test_the_generator_decides() -> None:
    for draw in (with_offset, perturbed):
        assert torch.equal(draw(white(), 0.1, generator()), draw(white(), 0.1, generator()))
        assert not torch.equal(draw(white(), 0.1, generator()), draw(white(), 0.1, generator(3)))
