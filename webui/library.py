"""The library of LoRAs as the page shows it: cards, what is in a file, and what can be made of it. No Gradio, no torch.

Headers and notes are read here. What needs values (spectrum, resize, merge, ...) is a command of the program, carried
out by a process of its own; a result goes among the LoRAs of the workspace under a free name. A name that comes from
the browser is looked up among the files that are there and never made into a path.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from diffusion_lora.adopted import Model, model_named, models, roots
from diffusion_lora.errors import AdapterFileError, ConfigError, OutputError, ServiceError
from diffusion_lora.faces.page import size_in_words
from diffusion_lora.jobs.launch import answer_of
from diffusion_lora.lora.card import Card, read_card
from diffusion_lora.lora.header import Header, read_header
from diffusion_lora.lora.report import LoadReport, load_report
from diffusion_lora.run import cannot_write
from diffusion_lora.sidecar import PREVIEW_SUFFIXES, read_notes, write_notes
from diffusion_lora.workspace import Workspace, check_name
from webui.gallery import SmallCopy, thumb
from webui.words import moment, sentence

SUFFIX = ".safetensors"
_FRESH_S = 0.9  # browsers ask once a second: they share a look at the folder
_NOTES = {"words": "activation_text", "weight": "preferred_weight", "text": "notes"}
_BESIDE = (".json", ".civitai.info", ".txt", *PREVIEW_SUFFIXES, *(f".preview{suffix}" for suffix in PREVIEW_SUFFIXES))

_Signature = tuple[tuple[str, int, int, int, int], ...]


class Library:
    """The LoRAs of a workspace and of what it adopted, for all browsers."""

    def __init__(self, workspace: Workspace, small: SmallCopy) -> None:
        self.workspace = workspace
        self._small = small
        self._lock = threading.Lock()
        self._looked = 0.0
        self._seen: _Signature | None = None
        self._cards: list[dict[str, Any]] = []
        self._spectra: dict[tuple[str, int], dict[str, Any]] = {}

    # --- looking ------------------------------------------------------------------------------------------------------

    def cards(self) -> list[dict[str, Any]]:
        """What the cards say, by name; read anew only when a file has come, gone or changed. Raises WorkspaceError."""
        with self._lock:
            if time.monotonic() - self._looked >= _FRESH_S:
                found = models(self.workspace, "loras")
                seen = tuple(self._sign(model) for model in found)
                if seen != self._seen:
                    inside = [root.folder for root in roots(self.workspace, "loras")]
                    self._cards = [self._card(model, inside) for model in found]
                    self._seen = seen
                self._looked = time.monotonic()
            return self._cards

    def details(self, name: str) -> dict[str, Any]:
        """Everything that is told of one file without reading its values. Raises AdapterFileError."""
        model = self._model(name)
        header = read_header(model.path)
        report = load_report(header)
        notes = read_notes(model.path, [root.folder for root in roots(self.workspace, "loras")])
        return {
            "name": name,
            "rows": _rows(report, header, model.path),
            "report": [[_capital(label), value] for label, value in _report_rows(report)],
            "warnings": [sentence(warning) for warning in report.warnings],
            "unread": [f"{tensor}: {reason}" for tensor, reason in report.unread.items()],
            "notes": {"words": notes.activation_text, "weight": notes.preferred_weight or "", "text": notes.notes},
            "note_problem": notes.problem,
            "description": notes.description,
            "own": self._is_own(model),
            "file": str(model.path),
            "free_name": self._free(f"{Path(model.name).name}-small"),
        }

    def spectrum(self, name: str) -> dict[str, Any]:
        """How its strength is spread over its ranks: `bars` (share of the energy by rank, falling), `rank_95`, and the
        sizes of smaller ones. Takes seconds the first time. Raises ServiceError, AdapterFileError."""
        model = self._model(name)
        key = str(model.path), model.path.stat().st_mtime_ns
        if key not in self._spectra:
            told = json.loads(self._command("adapter", "spectrum", str(model.path), "--json"))
            kept = told["kept"]
            size, now = model.path.stat().st_size, max(1, told["parameters"])
            self._spectra[key] = {
                "bars": [after - before for before, after in pairwise(kept)],
                "rank": len(kept) - 1,
                "rank_95": told["rank_for"]["0.95"],
                "sizes": [size_in_words(round(size * part / now)) for part in told["parameters_at"]],
                "notes": [sentence(note) for note in told["notes"]],
            }
        return self._spectra[key]

    # --- making -------------------------------------------------------------------------------------------------------

    def resize(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A LoRA of smaller rank: {name, rank, energy, out}. Raises UserErrors."""
        model = self._model(str(asked.get("name")))
        return self._made(asked, "resize", str(model.path), *_cut(asked))

    def merge(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One LoRA of two: {name, strength, other, other_strength, how, rank, energy, out}. Raises UserErrors."""
        how = str(asked.get("how") or "concat")
        cut = [] if how in ("concat", "linear") else _cut(asked)
        return self._made(asked, "merge", *self._pair(asked), f"--how={how}", *cut)

    def convert(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The same under other names or in other numbers: {name, to, dtype, out}. Raises UserErrors."""
        model = self._model(str(asked.get("name")))
        dtype = [f"--dtype={asked['dtype']}"] if asked.get("dtype") else []
        return self._made(asked, "convert", str(model.path), f"--to={asked.get('to') or 'kohya'}", *dtype)

    def extract(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A LoRA of the difference of two checkpoints: {tuned, base, rank, energy, out}. Raises UserErrors."""
        tuned, base = (self._checkpoint(str(asked.get(key) or "")) for key in ("tuned", "base"))
        return self._made(asked, "extract", tuned, base, *_cut(asked))

    def compare(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What two do to each other: {name, strength, other, other_strength}. Raises UserErrors."""
        told = json.loads(self._command("adapter", "compare", *self._pair(asked), "--json"))
        blocks = [
            {"name": block, "cosine": f"{met['cosine']:+.2f}", "verdict": met["verdict"]}
            for block, met in told["blocks"].items()
        ]
        return {
            "cosine": f"{told['cosine']:+.2f}",
            "advice": told["advice"],
            "notes": [sentence(note) for note in told["notes"]],
            "blocks": blocks,
        }

    # --- changing -----------------------------------------------------------------------------------------------------

    def note(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Note something beside a file: {name, field, value}. Raises UserErrors."""
        field = _NOTES.get(str(asked.get("field")))
        if field is None:
            raise ConfigError("this is nothing that can be noted: reload the page")
        text = str(asked.get("value") or "").strip()
        value = _number(text or "0") if field == _NOTES["weight"] else text
        write_notes(self._own(str(asked.get("name"))).path, {field: value})
        return {}

    def rename(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Give a file and what lies beside it another name: {name, to}. Raises UserErrors."""
        model = self._own(str(asked.get("name")))
        to = check_name(str(asked.get("to") or "").strip().removesuffix(SUFFIX))
        target = model.path.with_name(f"{to}{SUFFIX}")
        if target == model.path:
            return {"name": model.name}
        if target.exists():
            raise OutputError(f"there is a LoRA {to} already: choose another name")
        for file in (*_beside(model.path), model.path):  # the LoRA last: what is renamed in half is still found
            end = file.name.removeprefix(model.path.name.removesuffix(SUFFIX))
            try:
                file.rename(file.with_name(f"{to}{end}"))
            except OSError as error:
                raise cannot_write(target, error) from error
        self._looked = 0.0
        return {"name": "/".join([*Path(model.name).parent.parts, to])}

    def delete(self, name: str) -> dict[str, Any]:
        """Move a file and what lies beside it into the workspace's trash. Raises UserErrors."""
        model = self._own(name)
        for file in (model.path, *_beside(model.path)):
            self.workspace.throw_away(file)
        self._looked = 0.0
        return {"name": name}

    def take(self, file: Path, name: str) -> dict[str, Any]:
        """Put an uploaded file, whose name a person chose, among the LoRAs; it is moved there. Raises UserErrors:
        what is no safetensors file, or no LoRA, stays outside."""
        header = read_header(file)
        load_report(header)  # nothing in it is read: the sentence says what it looks like
        stem = Path(name.replace("\\", "/")).name.removesuffix(SUFFIX).strip()
        free = self._free(check_name(stem))
        try:
            shutil.move(file, self.workspace.loras / f"{free}{SUFFIX}")
            (self.workspace.loras / f"{free}{SUFFIX}").chmod(0o644)
        except OSError as error:
            raise cannot_write(self.workspace.loras / free, error) from error
        self._looked = 0.0
        return {"name": free}

    # --- parts --------------------------------------------------------------------------------------------------------

    def _made(self, asked: Mapping[str, Any], command: str, *arguments: str) -> dict[str, Any]:
        """Carry out a command that writes a LoRA, and say what it is called and what it lost."""
        name = self._free(check_name(str(asked.get("out") or "").strip().removesuffix(SUFFIX)))
        out = self.workspace.loras / f"{name}{SUFFIX}"
        told = json.loads(self._command("adapter", command, *arguments, f"--out={out}", "--json"))
        self._looked = 0.0
        return {"name": name, "error": told.get("error"), "notes": [sentence(note) for note in told.get("notes", [])]}

    def _command(self, *arguments: str) -> str:
        try:
            return answer_of(arguments, self.workspace.root)
        except ServiceError as error:
            # The folders above the files say nothing to a person at the page.
            raise ServiceError(str(error).replace(f"{self.workspace.loras}/", "")) from None

    def _pair(self, asked: Mapping[str, Any]) -> list[str]:
        one, other = self._model(str(asked.get("name"))), self._model(str(asked.get("other")))
        strengths = (_number(str(asked.get(key) or "1")) for key in ("strength", "other_strength"))
        return [f"{model.path}:{strength!r}" for model, strength in zip((one, other), strengths, strict=True)]

    def _checkpoint(self, name: str) -> str:
        """A base by the name it is listed under, else as it was typed: a path of this machine, or a name."""
        if not name.strip():
            raise ConfigError("two checkpoints are needed: the fine-tuned one, and what it was tuned from")
        model = model_named(self.workspace, "bases", name)
        return str(model.path) if model else name.strip()

    def _model(self, name: str) -> Model:
        model = model_named(self.workspace, "loras", name)
        if model is None:
            raise AdapterFileError(f"the LoRA {name} is no longer in the library: choose another")
        return model

    def _own(self, name: str) -> Model:
        model = self._model(name)
        if not self._is_own(model):
            raise OutputError(
                f"{name} lies in a folder of another program, which is not written to: copy it to change it"
            )
        return model

    def _is_own(self, model: Model) -> bool:
        return model.path.resolve().is_relative_to(self.workspace.loras.resolve())

    def _free(self, name: str) -> str:
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        return next(free for free in names if not (self.workspace.loras / f"{free}{SUFFIX}").exists())

    def _sign(self, model: Model) -> tuple[str, int, int, int, int]:
        """What changes when a card has to be read anew: the file, its notes, the pictures that stand for it."""
        stat = model.path.stat()
        notes = _changed(model.path.with_name(model.path.name.removesuffix(SUFFIX) + ".json"))
        previews = _changed(self.workspace.runs / model.name / "previews")
        return model.name, stat.st_mtime_ns, stat.st_size, notes, previews + _changed(model.path.parent)

    def _card(self, model: Model, inside: list[Path]) -> dict[str, Any]:
        card, notes = read_card(model.path, model.name), read_notes(model.path, inside)
        family, tags = _family_and_tags(card)
        trigger = card.trigger_word or " ".join(notes.activation_text.split())
        about = [_capital(card.kind), family, f"rank {card.rank}" if card.rank else ""]
        return {
            "name": model.name,
            "title": Path(model.name).name,
            "about": ", ".join(filter(None, about)),
            "family": family,
            "trigger": trigger,
            "tags": tags,
            "size": size_in_words(card.size_bytes),
            "changed": card.changed,
            "thumb": thumb(self.workspace, model.name, self._small),
            "problem": card.problem.replace(str(card.path), card.path.name),
            "words": " ".join([model.name, trigger, notes.notes, notes.description, *tags]).lower(),
        }


def family_of_base(name: str) -> str:
    """The title of the family that a base's name says, for the filter; "" where it says none."""
    from diffusion_lora.layouts.layout import layout_named

    layout = layout_named(name)
    return layout.title if layout else ""


def _family_and_tags(card: Card) -> tuple[str, list[str]]:
    if card.problem:
        return "", []
    try:
        header = read_header(card.path)
        family = load_report(header).family or ""
    except (AdapterFileError, OSError):
        return "", []
    tags = [tag.strip() for tag in header.metadata.get("modelspec.tags", "").split(",")]
    return family, [tag for tag in tags if tag][:8]


def _rows(report: LoadReport, header: Header, path: Path) -> list[list[str]]:
    """The facts a person asks for first; the whole report has the rest."""
    metadata, status = header.metadata, path.stat()
    ranks = "-".join(map(str, dict.fromkeys(report.ranks))) if report.ranks else "full matrices"
    trained = ((metadata.get("ss_num_train_images", ""), "pictures"), (metadata.get("ss_steps", ""), "steps"))
    learnt = ", ".join(f"{value} {what}" for value, what in trained if value.isdecimal() and int(value))
    rows = [
        ("Read", f"{report.matched} of {report.total} tensors, {report.layers} layers"),
        ("For", report.family or "its layers do not tell"),
        ("Rank", f"{ranks} (scale {report.scale:.3g})"),
        ("Trained on", report.base),
        ("Learnt from", learnt),
        ("File", f"{size_in_words(status.st_size)}, {'-'.join(report.dtypes).lower()}, {report.format}"),
        ("Since", moment(status.st_mtime)),
    ]
    return [[label, value] for label, value in rows if value]


def _report_rows(report: LoadReport) -> list[tuple[str, str]]:
    from diffusion_lora.faces.adapter_tables import report_rows  # brings rich along: not before somebody asks

    return report_rows(report)


def _cut(asked: Mapping[str, Any]) -> list[str]:
    rank, energy = str(asked.get("rank") or "").strip(), str(asked.get("energy") or "").strip()
    if rank and not rank.isdecimal():
        raise ConfigError(f"the rank {rank!r} is no whole number: give one such as 8")
    if not rank and not energy:
        raise ConfigError("neither a rank nor a share of the energy is given: say 8, or 0.95")
    return [*([f"--rank={rank}"] if rank else []), *([f"--energy={_number(energy)}"] if energy else [])]


def _number(text: str) -> float:
    try:
        return float(text.strip().replace(",", ".").replace("\u2212", "-"))
    except ValueError:
        raise ConfigError(f"{text.strip()!r} is no number: give one such as 0.8") from None


def _beside(path: Path) -> list[Path]:
    """The files that belong to a LoRA's file by their names."""
    stem = path.name.removesuffix(SUFFIX)
    return [file for end in _BESIDE if (file := path.with_name(stem + end)).is_file()]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


