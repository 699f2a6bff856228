"""Pictures over HTTP, and reports of runs: the routes of our own that send something out.

    /workspace/{area}/{path}    a picture of the workspace itself: pictures/, datasets/, loras/, previews of runs
    /thumbnail/{key}            a small copy of a picture the page has shown, wherever that lies
    /report/{run}               what is told of a run, made anew each time

The first never leaves its area, not by `..`, not by a link. The second knows only keys that this page has handed out,
or small copies that lie in the workspace already, so that pictures of a person's own folder need no open door.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from diffusion_lora.errors import DatasetError, UserError
from diffusion_lora.images import SUFFIXES, open_image
from diffusion_lora.run import Run
from diffusion_lora.workspace import Workspace
from webui import who
from webui.owners import may_see_run
from webui.words import sentence

_AREAS = ("pictures", "datasets", "loras", "runs")
_OF_A_RUN = ("previews", "pictures")
_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
_THUMBNAIL_PX = 384
_KEY = re.compile(r"[0-9a-f]{32}")
_UNREADABLE = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><path fill="none" stroke="#8b8b97"
 stroke-width="2" d="M24 24h48v48H24zM24 72l48-48"/></svg>"""


class Thumbnails:
    """Small copies of pictures, made when a browser first asks for one, kept in `state/thumbnails`."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.state / "thumbnails"
        self._pictures: dict[str, Path] = {}
        self._making = threading.BoundedSemaphore(2)

    def url(self, picture: Path) -> str:
        """Where a small copy of the picture is to be had; another address when the picture has changed."""
        try:
            stat = picture.stat()
        except OSError:
            version = "gone"
        else:
            version = f"{stat.st_mtime_ns}/{stat.st_size}"
        key = hashlib.blake2b(f"{picture}\0{version}".encode(), digest_size=16).hexdigest()
        self._pictures[key] = picture
        return f"thumbnail/{key}"

    def file(self, key: str) -> Path | None:
        """The small copy behind a key; None for a key that was never handed out. Raises DatasetError."""
        if not _KEY.fullmatch(key):
            return None
        small = self._folder / f"{key}.webp"
        if not small.exists():
            picture = self._pictures.get(key)
            if picture is None:
                return None
            with self._making:
                self._make(picture, small)
        return small

    def _make(self, picture: Path, small: Path) -> None:
        image = open_image(picture)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        temporary = small.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            self._folder.mkdir(exist_ok=True)
            image.save(temporary, format="WEBP", quality=86)
            temporary.replace(small)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DatasetError(f"a small copy of {picture} cannot be written: {error.strerror or error}") from error


def picture_url(workspace: Workspace, picture: Path) -> str:
    """The address of a picture of the workspace; it changes with the file, so that browsers may keep what they have."""
    return f"workspace/{quote(workspace.relative(picture))}?v={picture.stat().st_mtime_ns:x}"


def picture_routes(workspace: Workspace, thumbnails: Thumbnails) -> APIRouter:
    """The routes of this module."""
    router = APIRouter()

    @router.get("/workspace/{area}/{path:path}")
    def picture(area: str, path: str, request: Request) -> FileResponse:
        found = _inside(workspace, area, path)
        if found is None:
            raise HTTPException(404, "There is no such picture.")
        forever = "v" in request.query_params
        return FileResponse(
            found,
            media_type=_TYPES[found.suffix.lower()],
            headers={"Cache-Control": "private, max-age=31536000, immutable" if forever else "no-cache"},
        )

    @router.get("/thumbnail/{key}")
    def thumbnail(key: str) -> Response:
        try:
            small = thumbnails.file(key)
        except DatasetError:  # told where the pictures are listed; here something has to be shown
            return Response(_UNREADABLE, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
        if small is None:
            raise HTTPException(404, "There is no such picture.")
        return FileResponse(
            small, media_type="image/webp", headers={"Cache-Control": "private, max-age=31536000, immutable"}
        )

    return router



def report_routes(workspace: Workspace) -> APIRouter:
    """The report of a run, as one page without scripts."""
    router = APIRouter()

    @router.get("/report/{name}")
    def report(name: str) -> Response:
        from diffusion_lora.faces.run_report import run_report

        try:
            folder = workspace.run_folder(name)
            if not may_see_run(folder, who.is_asking()):
                raise HTTPException(404, "There is no such run.")
            return HTMLResponse(run_report(Run.open(folder)), headers={"Cache-Control": "no-store"})
        except UserError as error:
            return PlainTextResponse(f"{sentence(str(error))}\n", 404)

    return router


def _inside(workspace: Workspace, area: str, path: str) -> Path | None:
    """The picture at a path within an area; None for anything else, wherever a link or a `..` may lead."""
    parts = path.split("/")
    if area not in _AREAS or any(part in ("", "..") or part.startswith(".") or "\0" in part for part in parts):
        return None
    if area == "runs" and (len(parts) < 3 or parts[1] not in _OF_A_RUN):
        return None
    user = who.is_asking()
    if user and area == "pictures" and parts[0] != user:
        return None
    if user and area == "runs" and not may_see_run(workspace.runs / parts[0], user):
        return None
    root = (workspace.root / area).resolve()
    try:
        found = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    if area == "runs":
        root = root.joinpath(*parts[:2]).resolve()
    allowed = found.is_relative_to(root) and found.is_file() and found.suffix.lower() in SUFFIXES
    return found if allowed else None
