"""The page as one web application: bar and tabs, the walls around them, and the process that serves it.

    build(context)    the page, for whoever wants to mount it
    serve_page(...)   the page on a port, until Ctrl-C

It owns nothing: engine, worker and runs are processes of their own and go on when it is gone.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lora.accounts import Accounts, read_users
from diffusion_lora.errors import ServiceError
from diffusion_lora.jobs.store import Queue
from diffusion_lora.processes import open_ui
from diffusion_lora.workspace import Workspace
from webui import sets
from webui.context import Context
from webui.engine import EngineClient
from webui.files import Thumbnails, picture_routes, report_routes
from webui.library import Library
from webui.refusals import open_log
from webui.uploads import Sieve, upload_routes
from webui.walls import Names, Walls
from webui.watch import Watch

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

DEFAULT_PORT = 7860
_LARGEST_UPLOAD = "200mb"
_LAST_WORDS_S = 2


def serve_page(
    workspace: Workspace,
    *,
    port: int = DEFAULT_PORT,
    open_browser: bool = True,
    base: str = "pocket",
    device: str = "auto",
    listen: str | None = None,
    accounts: Path | None = None,
) -> None:
    """Serve the page of a workspace until Ctrl-C. Prints its address once it answers.

    `port` 0 is any free one. `listen` is an address other than loopback; it needs `accounts`, a file of users. Raises
    ServiceError: a port that is taken, `listen` without accounts, a file that holds none.
    """
    if listen is not None and accounts is None:
        raise ServiceError(f"--listen {listen} opens the page to other machines: give it --auth FILE as well")
    if accounts is not None and not read_users(accounts):
        raise ServiceError(f"{accounts} holds no user: add one with `diffusion-lora users add NAME --auth {accounts}`")
    with _socket(listen or "127.0.0.1", port) as listening:
        port = listening.getsockname()[1]
        _prepare_gradio(workspace)
        open_log(workspace)
        context = Context(workspace, EngineClient(workspace), Queue(workspace), base, device, accounts is not None)
        watch = Watch(context)
        with open_ui(workspace, port):
            if accounts is not None:
                sets.stay_in(workspace.datasets)
            # Engine and worker are on their way while Gradio is being imported: that takes as long as loading the base.
            watch.begin()
            known = None if accounts is None else Accounts(accounts)
            app = application(context, watch, names=Names.of(listen), port=port, accounts=known)
            _serve(app, listening, f"http://{_told_host(listen)}:{port}", open_browser=open_browser)


def build(
    context: Context,
    watch: Watch | None = None,
    thumbnails: Thumbnails | None = None,
    library: Library | None = None,
) -> gr.Blocks:
    """The page: a bar over a tab for each kind of work."""
    import gradio as gr

    from webui import bar, startview
    from webui.context import Links
    from webui.datasets import Datasets
    from webui.live import Pulse
    from webui.tabs.dataset import dataset_tab
    from webui.tabs.generate import generate_tab
    from webui.tabs.library import library_tab
    from webui.tabs.queue import queue_tab
    from webui.tabs.start import start_tab
    from webui.tabs.train import train_tab

    watch = watch or Watch(context)
    pulse = Pulse()
    with gr.Blocks(title="diffusion-lora", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(bar.BRAND, elem_id="brand", apply_default_css=False)
        bar_right = gr.HTML(bar.status(watch.look(), None), elem_id="bar-right", apply_default_css=False)
        pulse.feed(bar_right, lambda: bar.status(watch.look(), watch.story("")))
        open_adapter = gr.Textbox(visible="hidden", elem_id="open-adapter")
        shown_run = gr.Textbox(visible="hidden", elem_id="shown-run")
        train_on = gr.Textbox(visible="hidden", elem_id="train-on")
        like = gr.Textbox(visible="hidden", elem_id="train-like")
        first = "start" if startview.is_fresh(context.workspace) else "train"
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap", selected=first) as tabs:
            small = thumbnails or Thumbnails(context.workspace)
            links = Links(tabs, open_adapter, shown_run, train_on, like, pulse, watch, small)
            with gr.Tab("Start", id="start", elem_id="start"):
                start_tab(links)
            with gr.Tab("Dataset", id="dataset", elem_id="dataset"):
                dataset_tab(context, links, Datasets(context.workspace, small.url))
            with gr.Tab("Train", id="train", elem_id="train"):
                train_tab(context, links)
            with gr.Tab("Generate", id="generate", elem_id="generate"):
                generate_tab(context, links)
            with gr.Tab("Library", id="library", elem_id="library"):
                library_tab(context, links, library or Library(context.workspace, links.thumbnails.url))
            with gr.Tab("Queue", id="queue", elem_id="queue"):
                queue_tab(context, links)
        pulse.start(page)
    return page


def application(
    context: Context, watch: Watch, *, names: Names, port: int, accounts: Accounts | None = None
) -> FastAPI:
    """Page, picture routes and walls as one application."""
    import gradio as gr
    from fastapi import FastAPI

    from webui.opening import Opening, style_route
    from webui.theme import asset, theme

    thumbnails = Thumbnails(context.workspace)
    library = Library(context.workspace, thumbnails.url)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Opening)
    app.add_middleware(Sieve)
    app.add_middleware(Walls, names=names, port=port, accounts=accounts)  # added last: the outermost
    app.include_router(style_route())
    app.include_router(picture_routes(context.workspace, thumbnails))
    app.include_router(upload_routes(context.workspace, library))
    app.include_router(report_routes(context.workspace))
    gr.mount_gradio_app(
        app,
        build(context, watch, thumbnails, library),
        path="/",
        server_name="127.0.0.1",
        server_port=port,
        theme=theme(),
        js=f"() => {{ ({asset('page.js')})(); ({asset('chart.js')})(); }}",
        footer_links=[],
        run_history=False,
        max_file_size=_LARGEST_UPLOAD,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return app


def _prepare_gradio(workspace: Workspace) -> None:
    """What Gradio reads from the environment when it is imported: no telemetry, uploads inside the workspace."""
    uploads = workspace.state / "uploads"
    uploads.mkdir(exist_ok=True)
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(uploads),
        GRADIO_EXAMPLES_CACHE=str(workspace.state / "examples"),
        GRADIO_ALLOWED_PATHS="",
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def _serve(app: FastAPI, listening: socket.socket, address: str, *, open_browser: bool) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"The desk is at {address}  (Ctrl-C closes it; what runs goes on)", flush=True)
            if open_browser:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Pages that are open hold a stream each; what is cut off now is cut off on purpose, and no error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_WORDS_S, ws="none"
    )
    Server(config).run(sockets=[listening])


def _socket(host: str, port: int) -> socket.socket:
    """A listening socket: taken before anything is started, so that a taken port costs a person no waiting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # on Windows the option would let two processes share a port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ServiceError(f"port {port} on {host} cannot be used ({error.strerror}): give another, --port N") from None
    return listening


def _told_host(listen: str | None) -> str:
    if listen is None:
        return "127.0.0.1"
    if listen in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{listen}]" if ":" in listen else listen
