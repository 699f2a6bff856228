"""The adapter files that requests name: read once, checked, and put into the model while they are needed.

An adapter that no request at hand names is taken out of the model again, so that it costs nothing; its tensors stay in
memory, so that it comes back at once. A file that changes on disk is read anew.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, ConfigError, PromptError
from diffusion_lora.families.family import Model
from diffusion_lora.families.learned_words import add_word, spelled
from diffusion_lora.generate.conflicts import Conflicts
from diffusion_lora.generate.request import Embedding, LoraUse, Request
from diffusion_lora.generate.schedules import factor_at
from diffusion_lora.lora.adapter import Adapter, read_adapter, read_word
from diffusion_lora.lora.area import Area, Setting
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.header import tensor_hash
from diffusion_lora.lora.unet_blocks import BASE

Mix = Mapping[str, float | tuple[Setting, ...]]


@dataclass(frozen=True)
class _File:
    """What a path held when it was last read; `stamp` is its time of change and size."""

    stamp: tuple[int, int]
    sha: str
    adapter: Adapter


class _WordFile(NamedTuple):
    """What the file of an embedding held when it was last read."""

    stamp: tuple[int, int]
    sha: str
    vectors: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Loaded:
    """An adapter in the bank: its name there, whether it has a text encoder part, what the bank said of it.

    `words` are those learned with it, each with the key of its vectors in the model.
    """

    name: str
    acts_on_text: bool
    notes: tuple[str, ...]
    path: Path
    words: Mapping[str, str]


class Shelf:
    """The adapters of one model's requests. Names in the bank are the requests' own, made unique."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._bank = AdapterBank(model.components, model.layout.title, base_hash=model.weights_hash)
        self._files: dict[Path, _File] = {}
        self._word_files: dict[Path, _WordFile] = {}
        self._loaded: dict[str, _Loaded] = {}  # by SHA-256 of the tensors
        self._conflicts = Conflicts(lambda use: self._files[use.path.absolute()].adapter)
        self.loads = 0  # adapters put into the model so far

    def resolve(self, use: LoraUse) -> LoraUse:
        """The use with the hash of its file filled in. Raises AdapterFileError when the file is not the one meant."""
        file = self._read(use.path)
        if use.sha and not file.sha.startswith(use.sha.lower()):
            raise AdapterFileError(
                f"{use.path} holds another LoRA ({file.sha[:12]}) than the one asked for ({use.sha[:12]}): name that"
            )
        self._block_factors(use)
        return replace(use, sha=file.sha)

    def resolve_embedding(self, embedding: Embedding) -> Embedding:
        """The same with the hash of its file filled in. Raises AdapterFileError when the file is not the one meant."""
        _, sha, _ = self._read_word(embedding.path)
        if embedding.sha and not sha.startswith(embedding.sha.lower()):
            raise AdapterFileError(
                f"{embedding.path} holds another embedding ({sha[:12]}) than the one asked for ({embedding.sha[:12]})"
            )
        return replace(embedding, sha=sha)

    def hold(self, requests: Iterable[Request]) -> None:
        """Make the bank carry the adapters of these resolved requests, and no others."""
        requests = list(requests)
        wanted = {use.sha: use for request in requests for use in request.loras if use.sha}
        for embedding in {one.path: one for request in requests for one in request.embeddings}.values():
            self._teach_alone(embedding)
        for sha in self._loaded.keys() - wanted.keys():
            self._bank.unload(self._loaded.pop(sha).name)
        for sha, use in wanted.items():
            if sha not in self._loaded:
                adapter = self._files[use.path.absolute()].adapter
                name = use.name if use.name not in self._bank.names else f"{use.name} ({sha[:12]})"
                notes = self._bank.load(name, adapter)
                self.loads += 1
                words, told = self._teach(name, sha, adapter)
                on_text = any(part != "unet" for part in adapter.components)
                self._loaded[sha] = _Loaded(name, on_text, (*notes, *told), use.path, words)

    @property
    def held(self) -> tuple[tuple[Path, str], ...]:
        """The adapters in the model: (file, SHA-256 of its tensors)."""
        return tuple(sorted((loaded.path, sha) for sha, loaded in self._loaded.items()))

    def unet_mix(
        self, uses: Iterable[LoraUse], step: int, steps: int, areas: Mapping[str, Area], *, negative: bool
    ) -> Mix:
        """How the uses act in the UNet at a step (1 is the first), by name in the bank; a file named twice acts twice.

        `areas` are those of the request's regions; `negative` asks for the negative half of the guidance.
        """
        mix: dict[str, list[Setting]] = {}
        for use in uses:
            strength = _strength(use, negative=negative) * factor_at(use.steps, step, steps)
            area = areas[use.region] if use.region else None
            if strength:
                setting = Setting(strength, self._block_factors(use), area)
                mix.setdefault(self._of(use).name, []).append(setting)
        return {name: _simplest(settings) for name, settings in mix.items()}

    def text_mix(self, uses: Iterable[LoraUse], *, negative: bool = False) -> Mix:
        """Strengths in the text encoder, of the adapters that have a part there; schedules do not reach it."""
        mix: dict[str, float] = {}
        for use in uses:
            if self._of(use).acts_on_text:
                strength = _text_strength(use, negative=negative) * dict(self._block_factors(use)).get(BASE, 1.0)
                mix[self._of(use).name] = mix.get(self._of(use).name, 0.0) + strength
        return {name: strength for name, strength in mix.items() if strength}

    def spelled(
        self, uses: Iterable[LoraUse], prompt: str, *, negative: bool = False, embeddings: Sequence[Embedding] = ()
    ) -> str:
        """The prompt with the words that these adapters have learned written as their vectors' tokens, and those of
        `embeddings`, which act whatever the adapters do.

        An adapter whose strength on the text is 0 leaves its words the letters they are to the base.
        """
        for use in uses:
            if _text_strength(use, negative=negative):
                prompt = spelled(self._model, prompt, self._of(use).words)
        return spelled(self._model, prompt, {one.name: f"{one.sha} alone" for one in embeddings})

    def _teach(self, name: str, sha: str, adapter: Adapter) -> tuple[dict[str, str], list[str]]:
        """Let the text encoders know an adapter's learned words: word -> key, and what cannot be learned."""
        words, notes = {}, []
        for word, vectors in adapter.words.items():
            key = f"{sha} {word}"
            try:
                on_device = {part: tensor.to(self._model.device, torch.float32) for part, tensor in vectors.items()}
                add_word(self._model, key, on_device)
            except ValueError as error:
                notes.append(f"{name}: its learned word {word!r} is left out: {error}")
            else:
                words[word] = key
        return words, notes

    def _teach_alone(self, embedding: Embedding) -> None:
        """Let the text encoders know an embedding's vectors. Raises AdapterFileError where they are not this base's."""
        _, sha, vectors = self._read_word(embedding.path)
        try:
            add_word(
                self._model,
                f"{sha} alone",
                {part: tensor.to(self._model.device, torch.float32) for part, tensor in vectors.items()},
            )
        except ValueError as error:
            raise AdapterFileError(f"the embedding {embedding.path} is not for {self._model.name}: {error}") from error

    def mixed(self, rows: Sequence[Mix]) -> AbstractContextManager[None]:
        """Inside, batch row b has the mix rows[b]."""
        return self._bank.mix(rows[0] if all(row == rows[0] for row in rows) else rows)

    @contextmanager
    def folded(self, mix: Mapping[str, float]) -> Iterator[None]:
        """Inside, this mix is in the UNet's weights; behind it they are bit for bit what they were."""
        self._bank.fold(mix, {part: {} for part in self._bank.components if part != "unet"})
        try:
            yield
        finally:
            self._bank.restore()

    def notes(self, request: Request) -> tuple[str, ...]:
        """What the bank said about the request's adapters when it took them, and what they do to each other."""
        of_each = tuple(note for use in request.loras for note in self._of(use).notes)
        return of_each + (self._conflicts.notes(request.loras) if request.combine == "sum" else ())

    def _block_factors(self, use: LoraUse) -> tuple[tuple[str, float], ...]:
        """Raises PromptError for blocks that this base does not have."""
        if not use.blocks:
            return ()
        try:
            return self._bank.block_factors(use.blocks)
        except ConfigError as error:
            raise PromptError(f"the blocks of the LoRA {use.name}: {error}") from error

    def _of(self, use: LoraUse) -> _Loaded:
        assert use.sha is not None, "only resolved requests are drawn"
        return self._loaded[use.sha]

    def _read_word(self, path: Path) -> _WordFile:
        place, stamp = path.absolute(), _stamp(path)
        known = self._word_files.get(place)
        if known is None or known.stamp != stamp:
            known = self._word_files[place] = _WordFile(stamp, tensor_hash(path), read_word(path))
        return known

    def _read(self, path: Path) -> _File:
        place, stamp = path.absolute(), _stamp(path)
        known = self._files.get(place)
        if known is None or known.stamp != stamp:
            known = self._files[place] = _File(stamp, tensor_hash(path), read_adapter(path))
        return known


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)  # reading it says in a sentence what is wrong
    return (status.st_mtime_ns, status.st_size)


def _strength(use: LoraUse, *, negative: bool) -> float:
    return use.strength if use.negative is None or not negative else use.negative


def _text_strength(use: LoraUse, *, negative: bool) -> float:
    return use.strength_of_text if use.negative is None or not negative else use.negative


def _simplest(settings: Sequence[Setting]) -> float | tuple[Setting, ...]:
    """One number, where there are neither blocks nor areas."""
    if all(not setting.blocks and setting.area is None for setting in settings):
        return sum(setting.strength for setting in settings)
    return tuple(settings)
