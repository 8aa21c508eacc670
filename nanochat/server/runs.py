"""The runs dashboard over HTTP: a page, and the JSON it asks for again while training runs.

Owns: routes under /runs. Does not own: what a run is (report/runs.py) or who is let in (`guard`).
It needs no model, and imports neither FastAPI nor torch, so that it starts in a moment.
"""

import datetime
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.report import curves, data, page, runs
from nanochat.server.access import Access
from nanochat.server.guard import Guard, open_paths
from nanochat.system.errors import ConfigError, DataError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

STATIC = Path(__file__).parent / "static"
# A report has its style within it and no scripts; it is shown in a frame of the page.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'"


def create_dashboard(folder: Path, access: Access) -> "Starlette":
    """An application that shows the runs in a folder and nothing else.

    access: whom it answers. Raises: ConfigError if the packages are not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import RedirectResponse
        from starlette.staticfiles import StaticFiles
    except ImportError as error:
        raise ConfigError(f"dashboard: {error}; pip install 'nanochat[serve]'") from None

    async def home(request: "Request") -> "Response":
        return RedirectResponse("/runs")

    app = Starlette()
    app.add_middleware(Guard, access=access, open_paths=open_paths(STATIC))
    for path in ("/", "/index.html"):  # the chat's page
        app.add_route(path, home)
    add_run_routes(app, folder, chat=False)
    app.router.default = StaticFiles(directory=STATIC)
    return app


def add_run_routes(app: "Starlette", folder: Path, *, chat: bool = True) -> None:
    """Add the page and its JSON to an application that also serves the files in `static`.

    folder: holds the runs; it may be missing. chat: whether the page links to a chat at "/".
    """
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse

    def show(request: "Request") -> "Response":
        return FileResponse(STATIC / "runs.html")

    def overview(request: "Request") -> Any:
        found = runs.overview(folder)
        return {"runs": found, "now": time.time(), "folder": str(folder), "chat": chat}

    def details(request: "Request") -> Any:
        return runs.details(runs.find(folder, request.path_params["run"]))

    def metrics(request: "Request") -> Any:
        stage_dir = runs.find(folder, request.path_params["run"], request.path_params["stage"])
        query = request.query_params
        return curves.read(
            runs.metrics_file(stage_dir),
            file=query.get("file", ""),
            start=_whole(query.get("from"), 0),
            steps=(_whole(query.get("first"), 0), _whole(query.get("last"), curves.MAX_STEP)),
        ).as_json()

    def report(request: "Request") -> "Response":
        run = data.load(runs.find(folder, request.path_params["run"]))
        written = datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
        headers = {"content-security-policy": REPORT_POLICY}
        return HTMLResponse(page.render(run, written=written), headers=headers)

    def json_of(answer: Callable[["Request"], Any]) -> Callable[["Request"], "Response"]:
        @functools.wraps(answer)
        def route(request: "Request") -> "Response":
            try:
                found = answer(request)
            except (DataError, OSError) as error:
                body = {"error": {"message": _reason(error), "type": "invalid_request_error"}}
                return JSONResponse(body, status_code=404)
            return found if isinstance(found, HTMLResponse) else JSONResponse(found, headers=fresh)

        return route

    # A run's files change at any time. Functions that are not async run in threads of their own.
    fresh = {"cache-control": "no-store"}
    app.add_route("/runs", show)
    app.add_route("/runs/api", json_of(overview))
    app.add_route("/runs/api/{run}", json_of(details))
    app.add_route("/runs/api/{run}/{stage}", json_of(metrics))
    app.add_route("/runs/report/{run}", json_of(report))


def _reason(error: Exception) -> str:
    """What went wrong, without the server's paths."""
    return str(error) if isinstance(error, DataError) else "the run's files cannot be read"


def _whole(text: str | None, default: int) -> int:
    try:
        return int(text) if text else default
    except ValueError:
        return default
