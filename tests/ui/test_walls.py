"""Nobody but its own tabs speaks to the page, and nothing but pictures of the workspace leaves it.

Every refused request stands beside one that is granted: a server that refuses everything would pass otherwise.
"""

import itertools
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image

from diffusion_lora.accounts import add_user
from diffusion_lora.config import load_train_config, shipped
from diffusion_lora.run import Run
from diffusion_lora.workspace import Workspace
from tests.ui.process import DeskProcess
from tests.ui.raw import ask, basic, post_json
from webui.owners import note_owner

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]

SECRET = "this must stay where it is"
PRIVATE = (
    "pictures/note.txt", "runs/one/config.toml", "runs/one/log.txt", "datasets/mine/1.txt", "loras/a.safetensors",
)  # fmt: skip
OTHER_ROUTES = (
    "/thumbnail/", "/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/static/", "/assets/",
    "/gradio_api/stream/", "/gradio_api/download/", "/custom_component/", "/gradio_api/custom_component/",
)  # fmt: skip


@pytest.fixture(scope="module")
def furnished(desk: DeskProcess) -> DeskProcess:
    """A desk with a picture in each place that has any, and with things around them that are nobody's business."""
    root = desk.workspace
    places = ("pictures/1.png", "datasets/mine/1.png", "loras/thumbs/1.png", "runs/one/previews/1.png")
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / place)
    for place in PRIVATE:
        (root / place).write_text(SECRET, encoding="utf-8")
    outside = root.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8), "blue").save(outside / "secret.png")
    (outside / "secret.txt").write_text(SECRET, encoding="utf-8")
    Image.new("RGB", (8, 8), "blue").save(root / "runs" / "one" / "secret.png")
    (root / "pictures" / "folder").symlink_to(outside)
    (root / "pictures" / "away.png").symlink_to(outside / "secret.png")
    (root / "pictures" / "token.png").symlink_to(root / "state" / "engine.json")
    (root / "runs" / "one" / "previews" / "away.png").symlink_to(root / "runs" / "one" / "secret.png")
    return desk


def escapes(desk: DeskProcess) -> Iterator[str]:
    """Ways out of a folder, as they have worked on servers before."""
    outside, state = desk.workspace.parent / "outside", desk.workspace / "state"
    for steps in ("../../outside/secret.png", "../../outside/secret.txt", "../state/queue.db", "../state/engine.json"):
        yield steps
        yield f"mine/../{steps}"
        yield f"mine/../../{steps}"
        yield f"./{steps}"
        yield steps.replace("/", "\\")
        yield steps.replace("/", "%2f")
        yield steps.replace("/", "%5c")
        yield steps.replace("..", "%2e%2e")
        yield steps.replace("..", ".%2e")
        yield steps.replace("..", "%2e%2e").replace("/", "%2f")
        yield steps.replace("..", "%252e%252e").replace("/", "%252f")
        yield steps.replace("..", "%c0%ae%c0%ae")
        yield steps.replace("../", "....//")
        yield steps.replace("../", "..;/")
        yield f"{steps}%00.png"
    for place in (outside / "secret.png", outside / "secret.txt", state / "engine.json", Path("/etc/passwd")):
        yield f"/{place}"
        yield str(place)
        yield quote(str(place), safe="")
        yield quote(quote(str(place), safe=""), safe="")
        yield f"file://{place}"
        yield f"~{place}"


def test_pictures_of_the_workspace_are_served(furnished: DeskProcess) -> None:
    for place in ("pictures/1.png", "datasets/mine/1.png", "loras/thumbs/1.png", "runs/one/previews/1.png"):
        answer = ask(furnished.port, f"/workspace/{place}")
        assert answer.status == 200, place
        assert answer.body == (furnished.workspace / place).read_bytes()
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_served_from_outside_the_areas(furnished: DeskProcess) -> None:
    blue = (furnished.workspace.parent / "outside" / "secret.png").read_bytes()
    token = json.loads((furnished.workspace / "state" / "engine.json").read_text(encoding="utf-8"))["token"]
    ways = list(escapes(furnished))
    wanted = [f"/workspace/{area}/{way}" for area in ("pictures", "runs") for way in ways]
    # One place for files is ours, and its areas are one code; elsewhere every fourth way has to do.
    places = ("datasets", "loras", "state", "trash", "bases", "..", "%2e%2e", ".")
    elsewhere = [f"/workspace/{place}/" for place in places]
    routes = itertools.cycle((*elsewhere, *OTHER_ROUTES))
    wanted += [route + way for way in ways for route in itertools.islice(routes, 5)]
    for path in wanted:
        answer = ask(furnished.port, path)
        assert answer.status >= 400, path
        for private in (blue, SECRET.encode(), token.encode(), b"root:", b"SQLite"):
            assert private not in answer.body, path


@pytest.mark.parametrize(
    "path",
    [
        "pictures/note.txt", "pictures/folder/secret.png", "pictures/folder/secret.txt", "pictures/away.png",
        "pictures/token.png", "pictures/", "pictures", "pictures/folder", "runs/one/config.toml", "runs/one/log.txt",
        "runs/one/secret.png", "runs/one/previews/away.png", "runs/one/previews/../secret.png", "datasets/mine/1.txt",
        "loras/a.safetensors", "state/engine.json", "pictures/absent.png", "pictures/1.png/", "pictures/1.png%00",
    ],
)  # fmt: skip
def test_no_link_leads_out_and_only_pictures_are_shown(furnished: DeskProcess, path: str) -> None:
    assert ask(furnished.port, f"/workspace/{path}").status in {404, 405}


def test_gradio_serves_no_file_of_the_workspace_or_the_checkout(furnished: DeskProcess, checkout: Path) -> None:
    """Its own route for files knows uploads and its cache alone."""
    for place in (*PRIVATE, "state/engine.json", "state/queue.db", "pictures/1.png"):
        assert ask(furnished.port, f"/gradio_api/file={furnished.workspace / place}").status in {403, 404}, place
    for way in ("../engine.json", "../queue.db", "%2e%2e/engine.json", "x/../../engine.json", "..%2fengine.json"):
        assert ask(furnished.port, f"/gradio_api/file={furnished.workspace}/state/uploads/{way}").status >= 400, way
    for path in (checkout / "pyproject.toml", checkout / "webui" / "app.py", furnished.log, Path("README.md")):
        assert ask(furnished.port, f"/gradio_api/file={path}").status in {403, 404}, path


def test_gradio_is_no_proxy(furnished: DeskProcess) -> None:
    """A server that fetches what it is told to would reach the engine from the inside."""
    engine = furnished.wait_for_presence("engine")
    for target in (f"http://127.0.0.1:{engine['port']}/status", "http://elsewhere.example/x"):
        assert ask(furnished.port, f"/gradio_api/proxy={target}").status >= 400
        assert ask(furnished.port, f"/gradio_api/file={target}").status >= 400


@pytest.mark.parametrize("path", ["/", "/workspace/pictures/1.png", "/config", "/gradio_api/info", "/theme.css"])
def test_a_foreign_host_is_refused(furnished: DeskProcess, path: str) -> None:
    """Another site's name that was made to point at this machine is that site's, not ours (DNS rebinding)."""
    port = furnished.port
    names = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1")
    foreign = [f"{name}:{port}" for name in names]
    foreign += [f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}@evil.example", "127.0.0.1", "evil.example"]
    for host in (*foreign, None):
        assert ask(port, path, host=host).status in {400, 403}, host
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert ask(port, path, host=host).status in {200, 404}, host


@pytest.mark.parametrize("path", ["/", "/workspace/pictures/1.png", "/config", "/gradio_api/info"])
def test_a_foreign_origin_is_refused(furnished: DeskProcess, path: str) -> None:
    port = furnished.port
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", f"http://evil.example:{port}",
                   f"http://127.0.0.1:{port}.evil.example", "file://", ""):  # fmt: skip
        answer = ask(port, path, headers={"Origin": origin})
        assert answer.status == 403, origin
        assert "access-control-allow-origin" not in answer.headers
    assert ask(port, path, headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert ask(port, path, headers={"Origin": f"http://127.0.0.1:{port}"}).status in {200, 404}


def test_another_site_cannot_press_a_button(furnished: DeskProcess) -> None:
    """A form or script elsewhere, in the same browser, posts to the page's own calls."""
    port = furnished.port
    foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    order = {"data": [], "fn_index": 0, "session_hash": "x"}
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload", "/gradio_api/reset"):
        assert post_json(port, path, order, foreign).status == 403, path
        assert post_json(port, path, order, {"Sec-Fetch-Site": "cross-site"}).status == 403, path
        assert ask(port, path, method="OPTIONS", headers=foreign).status == 403, path


def test_the_page_may_load_nothing_from_elsewhere(furnished: DeskProcess) -> None:
    headers = ask(furnished.port, "/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "http:" not in headers["content-security-policy"]


def test_all_processes_listen_on_loopback_alone(furnished: DeskProcess) -> None:
    furnished.wait_for_presence("engine")
    listening = [
        connection.laddr.ip
        for process in furnished.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert set(listening) == {"127.0.0.1"}


# --- the engine -------------------------------------------------------------------------------------------------------

ROUTES = (
    ("GET", "/status"), ("GET", "/adapters"),
    ("POST", "/generate"), ("POST", "/cancel"), ("POST", "/load"), ("POST", "/unload"),
)  # fmt: skip


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")])
def test_the_engine_wants_its_token(furnished: DeskProcess, method: str, path: str) -> None:
    """Any program of this machine, of any user, can reach its port."""
    engine = furnished.wait_for_presence("engine")
    token = engine["token"]
    near = [f"Bearer {token[:-1]}", f"Bearer {token}x", f"Basic {token}", token]
    for told in (None, "", "Bearer", "Bearer ", "Bearer x", *near):
        headers = {} if told is None else {"Authorization": told}
        assert ask(engine["port"], path, method=method, headers=headers, body=b"{}").status == 401, told
    assert ask(engine["port"], f"{path}?token={token}", method=method, body=b"{}").status == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_engine_refuses_foreign_hosts_and_every_page(furnished: DeskProcess, method: str, path: str) -> None:
    engine = furnished.wait_for_presence("engine")
    port, right = engine["port"], {"Authorization": f"Bearer {engine['token']}"}
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{furnished.port}", None):
        assert ask(port, path, method=method, host=host, headers=right, body=b"{}").status in {400, 403}, host
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{furnished.port}", f"http://127.0.0.1:{port}"):
        assert ask(port, path, method=method, headers={**right, "Origin": origin}, body=b"{}").status == 403, origin


def test_the_engine_answers_whoever_has_the_token(furnished: DeskProcess) -> None:
    engine = furnished.wait_for_presence("engine")
    answer = ask(engine["port"], "/status", headers={"Authorization": f"Bearer {engine['token']}"})
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.skipif(os.name != "posix", reason="modes of files are told otherwise there")
def test_the_token_is_its_owners_alone(furnished: DeskProcess) -> None:
    furnished.wait_for_presence("engine")
    for path in (furnished.workspace / "state").glob("*.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_the_token_is_on_no_page_and_in_no_log(furnished: DeskProcess) -> None:
    token = furnished.wait_for_presence("engine")["token"]
    said = [path.read_bytes() for path in (furnished.workspace / "state").glob("*.log")]
    said += [furnished.log.read_bytes(), ask(furnished.port, "/").body, ask(furnished.port, "/config").body]
    assert not [text for text in said if token.encode() in text]
    assert not [line for process in furnished.processes() for line in process.cmdline() if token in line]


# --- listening beyond this machine ------------------------------------------------------------------------------------


def test_listening_without_a_login_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    """Who reaches the page can read pictures and start trainings."""
    done = command_line("ui", "--listen", "0.0.0.0", "--no-browser", "--workspace", tmp_path / "w")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "--auth" in line
    assert not (tmp_path / "w" / "state" / "engine.json").exists()


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskProcess]:
    """A desk that listens on every address, with two users."""
    folder = tmp_path_factory.mktemp("listening")
    for name, password in (("ann", "correct horse"), ("bea", "battery staple")):
        add_user(folder / "users.json", name, password)
    desk = DeskProcess(folder / "workspace", "--listen", "0.0.0.0", "--auth", str(folder / "users.json"))
    try:
        yield desk.start()
    finally:
        desk.close()


def test_listening_wants_the_login_on_every_route(listening: DeskProcess) -> None:
    port = listening.port
    (listening.workspace / "pictures" / "ann").mkdir()
    Image.new("RGB", (8, 8), "red").save(listening.workspace / "pictures" / "ann" / "1.png")
    place = "/workspace/pictures/ann/1.png"
    wrong = [{}, basic("ann", "wrong"), basic("bob", "correct horse"), {"Authorization": "Basic !!"}]
    paths = ["/", "/config", "/theme.css", place, "/thumbnail/x", "/gradio_api/info", "/absent", "/desk.css"]
    paths += ["/gradio_api/file=/etc/passwd", "/gradio_api/startup-events", "/gradio_api/heartbeat/x", "/openapi.json"]
    for path in paths:
        assert ask(port, path).status == 401, path
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/login", "/upload/lora?name=a.safetensors",
                 "/upload/zip?name=a.zip", "/gradio_api/component_server"):  # fmt: skip
        assert post_json(port, path, {}).status == 401, path
    for headers in wrong:
        assert ask(port, place, headers=headers).status == 401, headers
    right = basic("ann", "correct horse")
    assert ask(port, "/", headers=right).status == 200
    assert ask(port, place, headers=right).status == 200
    assert ask(port, place, headers=basic("bea", "battery staple")).status == 404, "another one's picture"
    forged = {**basic("bea", "battery staple"), "X-Desk-User": "ann"}
    assert ask(port, place, headers=forged).status == 404, "who asks is told by the walls alone"
    assert ask(port, "/", host=f"evil.example:{port}", headers=right).status == 403
    assert ask(port, "/", headers={**right, "Origin": "http://evil.example"}).status == 403


def test_the_password_is_told_to_nobody(listening: DeskProcess) -> None:
    """The engine and the runs inherit an environment, and everybody sees command lines."""
    listening.wait_for_presence("engine")
    assert "correct horse" not in listening.output()
    assert not [word for process in listening.processes() for word in process.cmdline() if "correct horse" in word]


def test_a_run_is_its_owners_to_see(listening: DeskProcess) -> None:
    runs = Workspace(listening.workspace).runs
    Run.create(runs / "hers", load_train_config(shipped("configs", "pocket-style")))
    note_owner(runs / "hers", "bea")
    Image.new("RGB", (8, 8), "red").save(runs / "hers" / "previews" / "1.png")
    path = "/workspace/runs/hers/previews/1.png"
    assert ask(listening.port, path, headers=basic("bea", "battery staple")).status == 200
    assert ask(listening.port, path, headers=basic("ann", "correct horse")).status == 404


def test_whoever_guesses_passwords_has_to_wait(listening: DeskProcess) -> None:
    """Last: this address is not listened to afterwards. Those who never gave a password are only asked for one."""
    port = listening.port
    for _ in range(20):
        assert ask(port, "/").status == 401
    wrong = [ask(port, "/", headers=basic("ann", f"guess {number}")).status for number in range(11)]
    assert wrong[0] == 401
    assert wrong[-1] == 429
    assert ask(port, "/", headers=basic("ann", "correct horse")).status == 429, "a guess that is right at last"
    noted = (listening.workspace / "state" / "page.log").read_text(encoding="utf-8")
    assert "refused 401" in noted
    assert "refused 429" in noted
    assert "guess" not in noted
    assert "correct horse" not in noted


# --- files that are sent to Gradio's own route ------------------------------------------------------------------------


def multipart(name: str, data: bytes) -> tuple[dict[str, str], bytes]:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: text/html\r\n\r\n'
    return {"Content-Type": "multipart/form-data; boundary=b"}, head.encode() + data + b"\r\n--b--\r\n"


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.png.svg", "model.ckpt", "a.pkl", "a", "a.png\\x00.html"])
def test_gradios_upload_takes_pictures_and_captions_alone(furnished: DeskProcess, name: str) -> None:
    """What it took it would serve again, under this page's own address."""
    headers, body = multipart(name, b"<script>alert(1)</script>")
    assert ask(furnished.port, "/gradio_api/upload", method="POST", headers=headers, body=body).status == 415
    kept = [path for path in (furnished.workspace / "state" / "uploads").rglob("*") if path.is_file()]
    assert not kept


def test_what_gradio_serves_again_is_a_picture_to_the_browser(furnished: DeskProcess) -> None:
    headers, body = multipart("a.png", b"<script>alert(1)</script>")
    answer = ask(furnished.port, "/gradio_api/upload", method="POST", headers=headers, body=body)
    assert answer.status == 200
    (path,) = json.loads(answer.body)
    served = ask(furnished.port, f"/gradio_api/file={path}")
    assert served.headers["content-type"] == "image/png"
    assert served.headers["x-content-type-options"] == "nosniff"
