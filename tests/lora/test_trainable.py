"""An adapter under training: its flat buffers, its start, its gradients, and that it learns with 8-bit state."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.trainable import ALIGNMENT, MIN_SEGMENT, TrainableAdapter

Components = dict[str, nn.Module]


def loss_of(components: Components) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    ids = torch.randint(0, 97, (2, 9), generator=generator)
    target = torch.randn(2, 4, 8, 8, generator=generator)
    text = components["te"](ids).last_hidden_state
    return F.mse_loss(components["unet"](latents, torch.tensor([300, 700]), text).sample.float(), target)


@pytest.fixture
def bank(components: Components) -> AdapterBank:
    return AdapterBank(components, "tiny")


@pytest.fixture
def trained(bank: AdapterBank) -> TrainableAdapter:
    return bank.add_trainable("new", rank=4, alpha=4.0, targets="wide", seed=7)


def test_it_starts_as_the_base_and_only_the_segments_train(bank: AdapterBank, components: Components) -> None:
    before = loss_of(components)
    trained = bank.add_trainable("new", rank=4, alpha=4.0)
    assert torch.equal(loss_of(components), before)
    loss_of(components).backward()
    base = [parameter for root in components.values() for parameter in root.parameters()]
    assert not any(parameter.requires_grad for parameter in base)
    assert all(parameter.grad is None for parameter in base)
    assert set(trained.segments) == {"unet", "te"}
    assert all(segment.grad.abs().max() > 0 for segment in trained.segments.values())


def test_down_has_variance_one_over_in_whatever_the_rank_and_up_is_zero(bank: AdapterBank) -> None:
    """LoRA's own start would scale with the rank: then a change of rank is a change of learning rate."""
    for rank in (2, 64):
        trained = bank.add_trainable(f"rank {rank}", rank=rank, alpha=1.0, targets="wide")
        downs = [layer.down for layer in trained.layers.values()]
        scaled = torch.cat([(down * (down[0].numel() ** 0.5)).flatten() for down in downs])
        assert scaled.std().item() == pytest.approx(1, abs=0.02)
        assert all(not layer.up.any() for layer in trained.layers.values())


def test_the_start_depends_on_seed_and_layer_alone(components: Components, bank: AdapterBank) -> None:
    narrow = bank.add_trainable("narrow", rank=4, alpha=4.0, targets="qv", seed=5)
    wide = bank.add_trainable("wide", rank=4, alpha=4.0, targets="wide", seed=5)
    other = bank.add_trainable("other", rank=4, alpha=4.0, targets="qv", seed=6)
    for key, layer in narrow.layers.items():
        assert torch.equal(layer.down, wide.layers[key].down)
        assert not torch.equal(layer.down, other.layers[key].down)


def test_matrices_and_gradients_are_aligned_views_of_the_segments(
    trained: TrainableAdapter, components: Components
) -> None:
    loss_of(components).backward()
    loss_of(components).backward()  # accumulation adds into the same buffers
    for group, segment in trained.segments.items():
        mine = [layer for key, layer in trained.layers.items() if (group == "unet") == key.startswith("unet.")]
        views = [view for layer in mine for view in layer.trained]
        assert segment.dtype == torch.float32
        assert segment.numel() >= MIN_SEGMENT
        for view in views:
            offset = view.storage_offset()
            assert offset % ALIGNMENT == 0
            assert view.untyped_storage().data_ptr() == segment.untyped_storage().data_ptr()
            assert torch.equal(view.grad.flatten(), segment.grad[offset : offset + view.numel()])
        assert segment.grad.abs().sum() == pytest.approx(sum(view.grad.abs().sum().item() for view in views), rel=1e-4)
    trained.zero_grad()
    assert not any(view.grad.any() for layer in trained.layers.values() for view in layer.trained)


def test_a_flat_gradient_taken_away_is_not_silent(trained: TrainableAdapter) -> None:
    """torch's own zero_grad drops gradients by default; the views would then go on without the optimizer."""
    torch.optim.AdamW(trained.segments.values()).zero_grad()
    with pytest.raises(RuntimeError, match="set to None"):
        trained.zero_grad()


def test_the_report_counts_layers_parameters_and_share(trained: TrainableAdapter, components: Components) -> None:
    report = trained.report
    assert report.layers == len(trained.layers)
    assert report.parameters == sum(view.numel() for layer in trained.layers.values() for view in layer.trained)
    assert report.base_parameters == sum(p.numel() for root in components.values() for p in root.parameters())
    assert f"trainable {100 * report.parameters / report.base_parameters:.1f} %" in str(report)


def test_gradients_equal_those_of_separate_parameters(trained: TrainableAdapter, components: Components) -> None:
    """The flat buffer is bookkeeping: autograd must find the same numbers for ordinary leaves."""
    for layer in trained.layers.values():
        layer.up.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    loss_of(components).backward()
    leaves = [leaf for layer in trained.layers.values() for leaf in layer.trained]
    direct = torch.autograd.grad(loss_of(components), leaves)
    for leaf, gradient in zip(leaves, direct, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-7)


def test_8_bit_adam_holds_8_bit_state_and_learns(trained: TrainableAdapter, components: Components) -> None:
    """bitsandbytes silently keeps fp32 for tensors under 4096 elements: the text encoder's matrices have 64."""
    import bitsandbytes

    assert max(layer.up.numel() for key, layer in trained.layers.items() if key.startswith("te.")) < 4096
    optimizer = bitsandbytes.optim.AdamW8bit(list(trained.segments.values()), lr=3e-3)
    first = loss_of(components).item()
    for _ in range(12):
        trained.zero_grad()
        loss_of(components).backward()
        optimizer.step()
    for segment in trained.segments.values():
        assert optimizer.state[segment]["state1"].dtype == torch.uint8
        assert optimizer.state[segment]["state2"].dtype == torch.uint8
    assert loss_of(components).item() < 0.9 * first
    assert all(layer.up.any() for layer in trained.layers.values())


def test_the_gap_between_matrices_stays_zero(trained: TrainableAdapter, components: Components) -> None:
    """Elements that belong to no matrix must not wander and spoil a block's scale."""
    optimizer = torch.optim.AdamW(list(trained.segments.values()), lr=1e-2)
    for _ in range(3):
        trained.zero_grad()
        loss_of(components).backward()
        optimizer.step()
    total = sum(segment.abs().sum() for segment in trained.segments.values())
    assert total.item() == pytest.approx(
        sum(leaf.abs().sum().item() for layer in trained.layers.values() for leaf in layer.trained), rel=1e-5
    )


def test_outside_a_mix_it_acts_at_strength_one_and_inside_as_told(
    bank: AdapterBank, trained: TrainableAdapter, components: Components
) -> None:
    """Training needs no context; a preview asks for the strength it wants, and for the base."""
    base = loss_of(components).item()
    for layer in trained.layers.values():
        layer.up.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    acting = loss_of(components).item()
    assert acting != base
    with bank.mix({"new": 1.0}):
        assert loss_of(components).item() == acting
    with bank.mix({}):
        assert loss_of(components).item() == base


def test_it_trains_on_top_of_a_loaded_adapter(
    bank: AdapterBank, components: Components, make_adapter: Callable[..., Adapter]
) -> None:
    bank.load("style", make_adapter(components, size=0.1))
    trained = bank.add_trainable("new", rank=2, alpha=2.0)
    with bank.mix({"style": 0.5, "new": 1.0}):
        on_style = loss_of(components)
        on_style.backward()
    with bank.mix({"style": 0.5}):
        assert loss_of(components).item() == on_style.item()
    assert trained.segments["unet"].grad.abs().max() > 0


def test_export_is_a_copy_that_draws_the_same_when_loaded(
    bank: AdapterBank, trained: TrainableAdapter, components: Components
) -> None:
    for layer in trained.layers.values():
        layer.up.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    acting = loss_of(components).item()
    adapter = bank.export("new", {"ss_output_name": "new"})
    assert adapter.metadata == {"ss_output_name": "new"}
    assert (adapter.rank, adapter.alpha, adapter.components) == (4, 4.0, ("te", "unet"))
    assert adapter.parameters == trained.report.parameters
    trained.segments["unet"].data.zero_()
    assert any(layer.up.any() for layer in adapter.layers.values())
    bank.unload("new")
    bank.load("again", adapter)
    with bank.mix({"again": 1.0}):
        assert loss_of(components).item() == pytest.approx(acting, rel=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients(trained: TrainableAdapter, components: Components) -> None:
    loss_of(components).backward()
    plain = trained.segments["unet"].grad.clone()
    trained.zero_grad()
    components["unet"].train()  # diffusers checkpoints in training mode only
    components["unet"].enable_gradient_checkpointing()
    loss_of(components).backward()
    torch.testing.assert_close(trained.segments["unet"].grad, plain, rtol=1e-5, atol=1e-8)


def test_autocast_training_reaches_every_matrix(trained: TrainableAdapter, components: Components) -> None:
    for layer in trained.layers.values():
        layer.up.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(components)
    loss.backward()
    assert all(leaf.grad.any() for layer in trained.layers.values() for leaf in layer.trained)


def test_without_text_targets_there_is_no_text_segment(bank: AdapterBank) -> None:
    assert set(bank.add_trainable("unet only", rank=1, alpha=1.0, text_targets="none").segments) == {"unet"}


def test_rank_zero_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(ConfigError, match=r"lora\.rank = 0"):
        bank.add_trainable("none", rank=0, alpha=1.0)
