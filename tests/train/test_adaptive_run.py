"""A run that cuts ranks: told in its events, the same when it is interrupted, an ordinary file in the end."""

from pathlib import Path

import pytest

from diffusion_lora.config import TrainConfig, parse_train_config, to_toml
from diffusion_lora.errors import ConfigError, RunInterrupted
from diffusion_lora.events import Event, read_events
from diffusion_lora.inbox import ask
from diffusion_lora.lora.adapter import read_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.header import read_header
from diffusion_lora.run import Run
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.trainer import train

ADAPTIVE = ("lora.adaptive_rank=8", "lora.adaptive_span=[0.2, 0.8]", "train.steps=10", "output.dtype=fp32")


def changed(config: TrainConfig, *settings: str) -> TrainConfig:
    return parse_train_config(to_toml(config), source="test", overrides=settings)


def test_a_run_that_is_interrupted_between_cuts_ends_in_the_very_same_file(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, *ADAPTIVE)
    whole = read_adapter(train(Run.create(tmp_path / "whole", config), config))
    ranks = [layer.rank for layer in whole.layers.values()]
    assert sum(ranks) <= 4 * len(ranks)
    assert len(set(ranks)) > 1
    cuts = [event for event in read_events(tmp_path / "whole") if event["kind"] == "ranks"]
    assert [cut["total"] for cut in cuts] == sorted((cut["total"] for cut in cuts), reverse=True)
    assert (cuts[-1]["total"], cuts[-1]["most"]) == (sum(ranks), max(ranks))

    run = Run.create(tmp_path / "run", config)

    def stop_at(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == 4:
            ask(run.folder, "stop")

    with pytest.raises(RunInterrupted):
        train(run, config, progress=stop_at)
    again = read_adapter(train(Run.resume(run.folder, config), config, resume=True))
    assert again.allclose(whole)

    metadata = read_header(run.adapter_path).metadata
    assert metadata["ss_network_dim"] == "Dynamic"
    model = prepare(config, lambda *_: None)
    model.bank.unload(model.adapter.name)
    AdapterBank(model.model.components, "tiny").load("a", again)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("lora.adaptive_rank=4",), "lora.adaptive_rank = 4 is where ranks start, lora.rank = 4 their average"),
        (("lora.adaptive_rank=8", 'lora.dora="output"'), "lora.adaptive_rank and lora.dora exclude each other"),
        (("lora.adaptive_rank=8", 'lora.initial="pissa"'), 'lora.adaptive_rank and lora.initial = "pissa" exclude'),
        (("lora.adaptive_rank=8", "lora.adaptive_span=[0.6, 0.2]"), r"lora.adaptive_span = \[0.6, 0.2\] must rise"),
    ],
)
def test_settings_that_do_not_go_together_are_told(
    config: TrainConfig, settings: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        changed(config, *settings)
