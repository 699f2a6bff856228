"""Rank advice: from planted matrices, from the gradients of a tiny base, and as the command tells it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from diffusion_lora.adapter_commands import app
from diffusion_lora.config import TrainConfig
from diffusion_lora.errors import ConfigError, RunError
from diffusion_lora.events import read_events
from diffusion_lora.lora.adapter import Adapter, LowRank, write_adapter
from diffusion_lora.lora.advice import Need, advice, kind_of, need_of
from diffusion_lora.lora.inject import find_sites
from diffusion_lora.run import Run
from diffusion_lora.train.advise import _loss, advise, gradient_needs
from diffusion_lora.train.draws import draw_step
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.trainer import train

Q = "unet.mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def planted(out: int, width: int, values: list[float], noise: float = 0.0) -> Tensor:
    """A matrix with these singular values, and noise of about this norm."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(out, len(values), generator=generator))[0]
    v = torch.linalg.qr(torch.randn(width, len(values), generator=generator))[0]
    rest = torch.randn(out, width, generator=generator) / (out * width) ** 0.5
    return (u * torch.tensor(values)) @ v.T + noise * rest


@pytest.mark.parametrize(
    ("values", "noise", "rank"),
    [([5.0, 4.0, 3.0], 0.0, 3), ([5.0, 4.0, 3.0], 0.5, 3), ([10.0] + [0.1] * 40, 0.0, 1), ([1.0] * 100, 0.0, 95)],
    ids=["rank 3", "rank 3 in noise", "one strong direction", "flat: sought twice over"],
)
def test_the_rank_of_a_planted_gradient_is_found_by_few_random_probes(
    values: list[float], noise: float, rank: int
) -> None:
    """400 x 600 is wide enough for the randomised decomposition; the exact one is beside."""
    matrix = planted(400, 600, values, noise)
    # As two passes would see it, each with a part of the columns.
    parts = matrix.double().split([200, 400], dim=1)
    need = need_of(Q, sum((part @ part.T for part in parts), start=torch.zeros(400, 400)), 400 + 600)
    exact = torch.linalg.svdvals(matrix.double())
    assert need.energy == pytest.approx(float(exact.square().sum()))
    kept = exact.square().cumsum(0) / exact.square().sum()
    by_hand = int((kept < 0.95 * (1 - 1e-9)).sum()) + 1
    assert by_hand == rank
    assert advice([need]).choice.rank == rank
    assert torch.allclose(need.values[:rank], exact[:rank], rtol=1e-4)


def test_a_layer_in_which_little_happens_has_little_say() -> None:
    text = "te.encoder_layers_0_self_attn_q_proj"
    needs = [
        Need(Q, torch.tensor([10.0, 5.0]), 125.0, 100),
        Need(text, torch.ones(50, dtype=torch.float64) * 0.01, 0.005, 40),
    ]
    told = advice(needs)
    assert told.choice.rank == 2
    assert {kind.kind: kind.choice.rank for kind in told.by_kind} == {"self-attention": 2, "text attention": 48}
    assert told.choice.parameters == 2 * (100 + 40)
    assert told.choice.size_bytes == 2 * told.choice.parameters
    assert told.parameters == 2 * 100 + 48 * 40
    assert told.patterns == {r"self_attn\.": 48}
    assert [choice.rank for choice in told.ladder] == [1, 2, 4]
    assert told.ladder[0].kept == pytest.approx(100 / 125.005, rel=1e-4)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (Q, "self-attention"),
        ("unet.up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0", "cross-attention"),
        ("unet.up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj", "feed-forward"),
        ("unet.up_blocks_1_attentions_0_proj_in", "projections"),
        ("unet.down_blocks_0_resnets_0_time_emb_proj", "time"),
        ("unet.time_embedding_linear_1", "time"),
        ("unet.down_blocks_0_resnets_0_conv1", "convolutions"),
        ("unet.conv_in", "convolutions"),
        ("te2.encoder_layers_11_self_attn_out_proj", "text attention"),
        ("te.encoder_layers_0_mlp_fc1", "text feed-forward"),
    ],
)
def test_kinds(key: str, kind: str) -> None:
    assert kind_of(key) == kind


def test_patterns_find_the_layers_they_are_told_for(config: TrainConfig) -> None:
    """They are pasted into lora.rank_patterns: one that finds another kind's layers first would be wrong advice."""
    import re

    from diffusion_lora.lora.advice import _KINDS

    ready = prepare(with_lora(config, targets="everything", text_targets="attention+mlp"), lambda *_: None)
    for key, site in find_sites(ready.model.components).items():
        first = next((name for name, _, pattern in _KINDS if re.search(pattern, site.path)), None)
        assert first == kind_of(key), site.path


def with_lora(config: TrainConfig, **changes: object) -> TrainConfig:
    return config.model_copy(update={"lora": config.lora.model_copy(update=changes)})


@pytest.mark.parametrize("group_bytes", [1, 1 << 30], ids=["a layer at a time", "all at once"])
def test_the_gradients_are_those_of_the_whole_weights(config: TrainConfig, group_bytes: int) -> None:
    """Layers in groups see the same pictures, timesteps and noise; the base is left as it was."""
    config = with_lora(config, targets=[r"attn1\.to_q$", r"resnets\.0\.conv1$"])
    ready = prepare(config, lambda *_: None)
    keys = list(ready.adapter.layers)
    ready.bank.unload(ready.adapter.name)
    sites = {key: site for key, site in find_sites(ready.model.components).items() if key in keys}
    assert any(key.startswith("te.") for key in sites)
    before = {key: site.weight.detach().clone() for key, site in sites.items()}

    needs = {need.key: need for need in gradient_needs(config, ready, sites, 2, group_bytes=group_bytes)}
    assert list(needs) == list(sites)
    for key, site in sites.items():
        assert torch.equal(site.weight, before[key])
        assert site.weight.grad is None
        assert not site.weight.requires_grad

    for site in sites.values():
        site.weight.requires_grad_()
    gradients: dict[str, list[Tensor]] = {key: [] for key in sites}
    for step in range(2):
        for draw in draw_step(step, ready.dataset, ready.latents, config, ready.schedule.timesteps):
            _loss(config, ready, draw).backward()
            for key, site in sites.items():
                assert site.weight.grad is not None
                gradients[key].append(site.weight.grad.double().flatten(1))
                site.weight.grad = None
    for key, passes in gradients.items():
        side = 1 if passes[0].shape[0] <= passes[0].shape[1] else 0
        exact = torch.linalg.svdvals(torch.cat(passes, dim=side))
        assert needs[key].energy == pytest.approx(float(exact.square().sum()), rel=1e-3)
        assert torch.allclose(needs[key].values[:4], exact[:4], rtol=1e-3)
        assert needs[key].cost == sum(passes[0].shape)


def test_the_loss_is_the_trainers(config: TrainConfig, tmp_path: Path) -> None:
    """Advice on another loss than the one that is then trained would be about another training."""
    settings = {"train": {"precision": "fp32", "steps": 1, "accumulation": 2}, "loss": {"noise_offset": 0.1}}
    for table, changes in settings.items():
        config = config.model_copy(update={table: getattr(config, table).model_copy(update=changes)})
    run = Run.create(tmp_path / "run", config)
    train(run, config)
    (told,) = [event["loss"] for event in read_events(run.folder) if event["kind"] == "step"]
    ready = prepare(config, lambda *_: None)
    with torch.no_grad():
        draws = draw_step(0, ready.dataset, ready.latents, config, ready.schedule.timesteps)
        losses = [_loss(config, ready, draw).item() for draw in draws]
    assert sum(losses) / len(losses) == pytest.approx(told, rel=1e-6)


def test_what_is_not_trained_gets_no_advice(config: TrainConfig) -> None:
    frozen = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"text_lr": 0.0})})
    assert {kind.kind for kind in advise(frozen, steps=1).by_kind} == {"self-attention", "cross-attention"}


def test_a_gradient_that_is_not_finite_is_told(config: TrainConfig) -> None:
    ready = prepare(config, lambda *_: None)
    sites = {key: site for key, site in find_sites(ready.model.components).items() if key in ready.adapter.layers}
    next(iter(sites.values())).weight.data.fill_(float("nan"))
    with pytest.raises(RunError, match=r'is not finite: try --set train\.precision="fp32"'):
        gradient_needs(config, ready, sites, 1)


def test_the_command_advises_before_a_training(base: Path, pictures: Path) -> None:
    arguments = ["advise", "--base", base, "--dataset", pictures, "--steps", "2"]
    short = ["--set", "train.device=cpu", "--set", "train.batch_size=2", "--set", 'train.precision="fp32"']
    said = CliRunner().invoke(app, [*map(str, arguments), *short, "--json"])
    assert said.exit_code == 0, said.exception
    told = json.loads(said.stdout)
    assert {kind["kind"] for kind in told["by_kind"]} == {"self-attention", "cross-attention", "text attention"}
    assert sum(kind["energy_share"] for kind in told["by_kind"]) == pytest.approx(1)
    assert told["kept"] >= 0.95
    assert told["size_bytes"] == 2 * told["parameters"]
    assert "the gradients of 4 pictures" in told["notes"][-1]
    table = CliRunner().invoke(app, [*map(str, arguments), *short], env={"COLUMNS": "200"}).stdout
    assert f"lora.rank = {told['rank']}" in table
    assert "cross-attention" in table


def test_the_command_advises_after_a_training(tmp_path: Path, invoke: Callable[..., str]) -> None:
    """Of a LoRA of rank 8 that used two directions, with the size that a smaller one has."""
    up, down = planted(48, 8, [4.0, 3.0]), torch.eye(8, 32)
    path = tmp_path / "a.safetensors"
    write_adapter(Adapter({Q: LowRank(down, up, 8.0)}, {}), path, "fp32")
    told = json.loads(invoke("advise", path, "--json"))
    assert (told["rank"], told["parameters"]) == (2, 2 * (48 + 32))
    assert "lora.rank = 2" in invoke("advise", path)


@pytest.fixture
def invoke() -> Callable[..., str]:
    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.exception
        return result.stdout

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say either a FILE that was trained, or --dataset DIR"),
        (["a.safetensors", "--dataset", "x"], "say either a FILE"),
        (["a.safetensors", "--share", "1.5"], r"--share is 1\.5; give one above 0"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["advise", *arguments])
    assert isinstance(result.exception, ConfigError)
    import re

    assert re.search(words, str(result.exception))
