"""A small Hugging Face hub and file mirror on 127.0.0.1, whose transfers can be cut.

Owns the part of the hub's HTTP interface that downloads of shards and the `datasets` library use:
the API of a dataset's files, redirects to a store of large files, ranges, hashes in headers.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STORE = "/store/"  # where the hub redirects to for a file's bytes
HELD_LONGEST_S = 300.0


class Hub:
    """The files that are served, the requests so far, and the transfers to disturb.

    repositories: files of each dataset by their paths. mirror: files outside the hub by name.
    cut: whether the first transfer of each file ends in the middle, as on a bad line.
    busy: how many of the next requests to the API are refused, as where there are too many.
    """

    def __init__(
        self,
        repositories: dict[str, dict[str, bytes]],
        mirror: dict[str, bytes],
        *,
        cut: bool = False,
        busy: int = 0,
    ) -> None:
        self.repositories = repositories
        self.mirror = mirror
        self.cut = cut
        self.busy = busy
        self.requests: list[str] = []
        self.resumed: dict[str, int] = {}  # the byte from which a file was last asked for
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._hold: str | None = None
        self.held = threading.Event()
        self._released = threading.Event()
        files = [data for paths in repositories.values() for data in paths.values()]
        self.store = {hashlib.sha256(data).hexdigest(): data for data in files}

    def refuses(self) -> bool:
        """Whether to refuse a request to the API."""
        with self._lock:
            self.busy -= 1
            return self.busy >= 0

    def hold(self, name: str) -> None:
        """Stop transfers of a file in their middle until `release`."""
        self.held.clear()
        self._released.clear()
        self._hold = name

    def release(self) -> None:
        """Let held transfers end where they are, and hold no more."""
        self._hold = None
        self._released.set()

    def bytes_to_send(self, name: str, data: bytes) -> bytes:
        """What of the data to send before the connection is closed; waits if it is to be held."""
        with self._lock:
            first = name not in self._seen
            self._seen.add(name)
        if name == self._hold:
            return data[: len(data) // 2]
        return data[: len(data) // 2] if self.cut and first and len(data) > 10_000 else data

    def wait_if_held(self, name: str) -> None:
        """After half of a file has been sent: wait until the transfer may end."""
        if name == self._hold:
            self.held.set()
            self._released.wait(HELD_LONGEST_S)


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Serve on a free port; yields the address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.release()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(format % args)

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        path = unquote(urlsplit(self.path).path)
        mirrored = re.fullmatch(r"/mirror/([^/]+)", path)
        in_store = re.fullmatch(rf"{STORE}([0-9a-f]{{64}})/(.+)", path)
        resolved = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/([a-z-]+)/[^/]+(?:/(.*))?)?", path)
        if mirrored and mirrored[1] in self.hub.mirror:
            self._send_file(mirrored[1], self.hub.mirror[mirrored[1]])
        elif in_store and in_store[1] in self.hub.store:
            self._send_file(in_store[2], self.hub.store[in_store[1]])
        elif resolved and resolved[1] in self.hub.repositories:
            self._resolve(resolved[1], resolved[2])
        elif api and self.hub.refuses():
            self._send(429, b"Too Many Requests", {"RateLimit": '"api";r=0;t=1'})
        elif api and api[1] in self.hub.repositories:
            self._api(api[1], api[2] or "revision", api[3] or "", body)
        else:
            self._send(404, b"Not Found", {"X-Error-Code": "RepoNotFound"})

    def _resolve(self, repository: str, path: str) -> None:
        """Text at once; other files from the store, which as on the hub is another host."""
        data = self.hub.repositories[repository].get(path)
        if data is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(404, b"Entry not found", headers)
            return
        if path.endswith(".md"):
            self._send_file(path, data, {"X-Repo-Commit": COMMIT})
            return
        digest = hashlib.sha256(data).hexdigest()
        port = self.server.server_address[1]
        headers = {
            "Location": f"http://localhost:{port}{STORE}{digest}/{path}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{digest}"',
        }
        self._send(302, b"", headers)

    def _api(self, repository: str, what: str, folder: str, body: str) -> None:
        files = self.hub.repositories[repository]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            facts = {"private": False, "disabled": False, "gated": False, "tags": []}
            found: Any = {"id": repository, "sha": COMMIT, "siblings": siblings, **facts}
        elif what == "paths-info":
            asked = json.loads(body)["paths"] if body[:1] == "{" else parse_qs(body)["paths"]
            found = [entry for path in asked if (entry := self._entry(files, path))]
        else:
            recursive = "recursive=true" in self.path.lower()
            inside = [path for path in files if path.startswith(folder and f"{folder}/")]
            skip = len(folder) + 1 if folder else 0
            names = [path[skip:].split("/") for path in inside]
            depth = max((len(parts) for parts in names), default=1) if recursive else 1
            paths = {"/".join(parts[:n]) for parts in names for n in range(1, depth + 1)}
            full = sorted(f"{folder}/{path}" if folder else path for path in paths)
            found = [self._entry(files, path) for path in full]
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _entry(self, files: dict[str, bytes], path: str) -> dict[str, Any] | None:
        """A file or folder as the hub lists it; None if there is none of this name."""
        oid = hashlib.sha1(path.encode()).hexdigest()
        if path not in files:
            inside = any(name.startswith(f"{path}/") for name in files)
            return {"type": "directory", "oid": oid, "size": 0, "path": path} if inside else None
        data = files[path]
        size = len(data)
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
        return {"type": "file", "oid": oid, "size": size, "lfs": lfs, "path": path}

    def _send_file(self, name: str, data: bytes, more: dict[str, str] | None = None) -> None:
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        headers |= more or {}
        if asked:
            start = self.hub.resumed[name] = int(asked[1])
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if asked else 200, data[start:], headers, name)

    def _send(self, status: int, data: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = self.hub.bytes_to_send(name, data) if name else data
        with contextlib.suppress(ConnectionError):
            self.wfile.write(part)
            self.wfile.flush()
            if len(part) < len(data):
                self.close_connection = True
                self.hub.wait_if_held(name)
