"""Fetching a base: the real hub library against a small hub of our own on the loopback, in processes of their own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOCATE = "import sys; from diffusion_lora.families.source import locate; print(locate(*sys.argv[1:]).folder)"
CAUGHT = f"""
from diffusion_lora.errors import BaseModelError
try:
    exec({LOCATE!r})
except BaseModelError as error:
    print("error:", error)
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of one folder as the repository `someone/tiny`; `gated/base` is gated; there is no other."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.sent: list[str] = []
        self.claimed_size: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """What the hub's client asks for: repository facts, the list of files, files."""

    server: Hub

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
        if path.startswith("gated/base"):
            self.refuse(403, "GatedRepo")
        elif not path.startswith("someone/tiny"):
            self.refuse(401, "RepoNotFound")
        elif "/revision/" in path and not path.endswith(("main", COMMIT)):
            self.refuse(404, "RevisionNotFound")
        elif "/resolve/" in path:
            self.send_file(path.split("/resolve/")[1].partition("/")[2], body)
        else:
            self.send_json(path)

    def send_json(self, path: str) -> None:
        files = self.server.files
        sizes = {name: self.server.claimed_size or file.stat().st_size for name, file in files.items()}
        tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
        siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        facts = {"id": "someone/tiny", "sha": COMMIT, "siblings": siblings, "private": False}
        data = json.dumps(tree if "/tree/" in path else facts).encode()
        self.begin(200, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def send_file(self, name: str, body: bool) -> None:
        data = self.server.files[name].read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.begin(200, {"Content-Length": str(len(data)), "ETag": etag, "X-Repo-Commit": COMMIT})
        if body:
            self.server.sent.append(name)
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.begin(status, {"X-Error-Code": code, "Content-Length": "0"})

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the tests' output quiet."""


@pytest.fixture
def hub(sd_folder: Path, tmp_path: Path) -> Iterator[Hub]:
    """The tiny base on a hub, beside files that nobody needs."""
    import shutil

    folder = Path(shutil.copytree(sd_folder, tmp_path / "repository"))
    (folder / "pruned.ckpt").write_bytes(b"large")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def locate(url: str, home: Path, *arguments: str, offline: bool = False) -> str:
    """What `locate` says in a process whose hub is at `url` and whose cache is `home`."""
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", CAUGHT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_base_is_fetched_once_and_works_offline_afterwards(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = Path(locate(hub.url, home, "someone/tiny"))
    assert (folder / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert not {"pruned.ckpt", "unet/diffusion_pytorch_model.bin"} & set(hub.sent), "pickles stay where they are"
    fetched = len(hub.sent)
    assert locate(hub.url, home, "someone/tiny") == str(folder)
    assert locate(hub.url, home, "someone/tiny", offline=True) == str(folder)
    assert len(hub.sent) == fetched


def test_what_the_hub_refuses_is_told_with_what_to_do(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "is not on the hub, or is private" in locate(hub.url, home, "someone/else")
    assert "is gated: accept its terms" in locate(hub.url, home, "gated/base")
    assert "no revision 'v9'" in locate(hub.url, home, "someone/tiny", "v9")


def test_a_hub_out_of_reach_is_told(tmp_path: Path) -> None:
    said = locate("http://127.0.0.1:9", tmp_path, "someone/tiny")
    assert said.startswith(
        "error: the base someone/tiny is not in the hub's cache on this machine, and the hub cannot be"
    )


def test_a_large_base_of_another_architecture_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files["model_index.json"].write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    assert "is a StableDiffusion3Pipeline" in locate(hub.url, tmp_path / "home", "someone/tiny")
    assert set(hub.sent) == {"model_index.json"}


def test_a_base_that_the_disk_cannot_hold_is_not_begun(hub: Hub, tmp_path: Path) -> None:
    hub.claimed_size = 10**15
    assert "GB are free; make room, or set HF_HOME" in locate(hub.url, tmp_path / "home", "someone/tiny")
    assert set(hub.sent) == {"model_index.json"}
