"""The way a forward pass is computed is a matter of speed and rounding, never of meaning."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lora.config import TrainTable
from diffusion_lora.train.arithmetic import arithmetic
from diffusion_lora.train.widened import has_products

CPU = torch.device("cpu")


def attend(qkv: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.clone().requires_grad_()
    out = F.scaled_dot_product_attention(*qkv)
    out.square().sum().backward()
    assert qkv.grad is not None
    return out.detach(), qkv.grad


def test_plain_attention_over_short_sequences_is_the_fused_one_forward_and_backward() -> None:
    qkv = torch.randn(3, 2, 4, 64, 16, generator=torch.Generator().manual_seed(0))
    fused = attend(qkv)
    with arithmetic(TrainTable(precision="fp32"), CPU, tokens=64):
        plain = attend(qkv)
    for ours, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "stored"), [("fp32", torch.float32), ("bf16", torch.float32), ("bf16", torch.bfloat16)]
)
@pytest.mark.parametrize("tokens", [64, 4096])
def test_the_precision_holds_inside_the_context_only(precision: str, stored: torch.dtype, tokens: int) -> None:
    """fp32 weights are computed with in fp32 where rounding to bf16 would only take longer."""
    layer = torch.nn.Linear(4, 4).to(stored)
    rounded = precision == "bf16" and (stored == torch.bfloat16 or has_products(torch.bfloat16))
    x = torch.ones(1, 4, dtype=stored)
    with arithmetic(TrainTable(precision=precision), CPU, tokens, stored):
        assert layer(x).dtype == (torch.bfloat16 if rounded else torch.float32)
    assert layer(x).dtype == stored


@pytest.mark.skipif(not has_products(torch.bfloat16), reason="this processor has no bf16 products")
@pytest.mark.parametrize("tokens", [64, 256, 300])
def test_short_attention_in_half_precision_is_torchs_forward_and_backward(tokens: int) -> None:
    """Wrong: a forgotten scale, products the wrong way round; 300 tokens stay with torch bit for bit."""
    qkv = torch.randn(3, 2, 4, tokens, 16, generator=torch.Generator().manual_seed(0))
    exact, fused = attend(qkv), attend(qkv.bfloat16())
    with arithmetic(TrainTable(precision="bf16"), CPU, tokens):
        plain = attend(qkv.bfloat16())
    for ours, theirs, right in zip(plain, fused, exact, strict=True):
        if tokens > 256:
            assert torch.equal(ours, theirs)
        else:
            assert not torch.equal(ours, theirs), "it was not taken"
            assert (ours - right).norm() / right.norm() < 0.02


@pytest.mark.skipif(not has_products(torch.bfloat16), reason="this processor has no bf16 products")
def test_attention_with_a_mask_or_in_order_is_torchs_own() -> None:
    """Text encoders ask for it: without the mask every word would see those that come after."""
    query, key, value = torch.randn(3, 1, 2, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    asked = [{"attn_mask": mask}, {"is_causal": True}, {"scale": 0.5}]
    with arithmetic(TrainTable(precision="bf16"), CPU, 8):
        ours = [F.scaled_dot_product_attention(query, key, value, **one) for one in asked]
    for one, told in zip(asked, ours, strict=True):
        right = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **one)
        torch.testing.assert_close(told.float(), right, rtol=0.02, atol=0.02)
