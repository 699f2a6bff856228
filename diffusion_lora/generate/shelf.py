"""The adapter files that requests name: read once, checked, and put into the model while they are needed.

An adapter that no request at hand names is taken out of the model again, so that it costs nothing; its tensors stay in
memory under its file's identity, so that it comes back at once. A file that changes on disk is read anew.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.families.family import Model
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.lora.header import tensor_hash

Mix = dict[str, float]


class Shelf:
    """The adapters of one model's requests. Names in the bank are the requests' own, made unique."""

    def __init__(self, model: Model) -> None:
        self._bank = AdapterBank(model.components, model.layout.title, base_hash=model.weights_hash)
        self._files: dict[tuple[Path, int, int], tuple[str, Adapter]] = {}
        self._adapters: dict[str, Adapter] = {}  # by SHA-256 of the tensors
        self._names: dict[str, str] = {}  # SHA-256 -> name in the bank, of those loaded
        self._notes: dict[str, tuple[str, ...]] = {}

    def resolve(self, use: LoraUse) -> LoraUse:
        """The use with the hash of its file filled in. Raises AdapterFileError when the file is not the one meant."""
        path = use.path.absolute()
        try:
            status = path.stat()
            identity = (path, status.st_mtime_ns, status.st_size)
        except OSError:
            identity = (path, 0, 0)  # reading it below says in a sentence what is wrong
        if identity not in self._files:
            adapter = read_adapter(use.path)
            self._files[identity] = (tensor_hash(use.path), adapter)
        sha, adapter = self._files[identity]
        if use.sha and not sha.startswith(use.sha.lower()):
            raise AdapterFileError(
                f"{use.path} holds another LoRA ({sha[:12]}) than the one asked for ({use.sha[:12]}): name that file"
            )
        self._adapters[sha] = adapter
        return replace(use, sha=sha)

    def hold(self, requests: Iterable[Request]) -> None:
        """Make the bank carry the adapters of these resolved requests, and no others."""
        uses = {use.sha: use for request in requests for use in request.loras if use.sha}
        for sha in [sha for sha in self._names if sha not in uses]:
            self._bank.unload(self._names.pop(sha))
            self._notes.pop(sha)
        for sha, use in uses.items():
            if sha not in self._names:
                name = use.name if use.name not in self._names.values() else f"{use.name} ({sha[:12]})"
                self._notes[sha] = tuple(self._bank.load(name, self._adapters[sha]))
                self._names[sha] = name

    def unet_mix(self, request: Request) -> Mix:
        """Strengths in the UNet, by name in the bank; a file named twice acts twice."""
        return self._mix((use.sha, use.strength) for use in request.loras)

    def text_mix(self, request: Request) -> Mix:
        """Strengths in the text encoder, of the adapters that have a part there."""
        return self._mix(
            (use.sha, use.strength_of_text)
            for use in request.loras
            if use.sha and any(component != "unet" for component in self._adapters[use.sha].components)
        )

    def mixed(self, rows: Sequence[Mix]) -> AbstractContextManager[None]:
        """Inside, batch row b has the mix rows[b]."""
        return self._bank.mix(rows[0] if all(row == rows[0] for row in rows) else rows)

    def notes(self, request: Request) -> tuple[str, ...]:
        """What the bank said about the request's adapters when it took them."""
        return tuple(note for use in request.loras if use.sha for note in self._notes.get(use.sha, ()))

    def _mix(self, strengths: Iterable[tuple[str | None, float]]) -> Mix:
        mix: Mix = {}
        for sha, strength in strengths:
            if sha and strength:
                mix[self._names[sha]] = mix.get(self._names[sha], 0.0) + strength
        return {name: strength for name, strength in mix.items() if strength}
