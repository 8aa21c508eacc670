"""Files from the network: complete and verified, or an error that says what to do.

Owns `fetch`, which resumes where it was interrupted, checks length and sha256, and leaves nothing
under the final name until both are right; and when a refused request is worth repeating.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import BaseHandler, Request, build_opener

from nanochat.system import storage
from nanochat.system.errors import DataError

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 6  # in a row without a single new byte
LONGEST_WAIT_S = 60.0
NETWORK_ERRORS = (URLError, HTTPException, SSLError, TimeoutError, ConnectionError)

# Called with the bytes on disk so far and the full length, or None if that is unknown.
DownloadProgress = Callable[[int, int | None], None]


class _Retry(Exception):
    """This attempt failed; another may succeed.

    damaged: all bytes arrived, but they are wrong.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, damaged: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.damaged = damaged


def is_temporary(status: int) -> bool:
    """Whether a server that answers with this HTTP status may answer a later request better."""
    return status in (408, 425, 429) or status >= 500


def stated_wait_s(headers: Mapping[str, str] | Message) -> float | None:
    """Seconds to wait before the next request, as a server states them; None if it does not.

    headers: of a response, found in any case. Retry-After, or the hub's RateLimit, whose t is the
    time until it counts from zero.
    """
    stated = (headers.get("Retry-After") or "").strip()
    if not stated.isdigit():
        match = re.search(r"\bt=(\d+)", headers.get("RateLimit") or "")
        stated = match[1] if match else ""
    return min(LONGEST_WAIT_S, float(stated)) if stated else None


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    token: str | None = None,
    progress: DownloadProgress | None = None,
    wait_s: float = 1.0,
) -> None:
    """Download a file unless it already exists.

    sha256, size: the expected values; those that the server states (the hub's X-Linked-ETag and
    X-Linked-Size, Content-Length) are checked too. token: sent to the host of the URL only.
    wait_s: the wait before the second attempt, doubled for each further one.
    Bytes that have arrived are kept in a hidden .part file and not requested again. Processes that
    want the same file at once wait for each other.
    Raises: DataError if the file cannot be downloaded or is not the expected one.
    """
    part = path.with_name(f".{path.name}.part")
    download = _Download(
        url=url, part=part, sha256=sha256, size=size, token=token, progress=progress
    )
    with storage.lock(path.with_name(f".{path.name}.lock")):
        if path.is_file() and size in (None, path.stat().st_size):
            return
        _try_until_complete(download, wait_s)
        storage.fsync(part)
        part.replace(path)
        download.discard()
        storage.fsync(path.parent)


def _try_until_complete(download: "_Download", wait_s: float) -> None:
    failures = damages = 0
    while True:
        before = download.have
        try:
            download.attempt()
            return
        except _Retry as error:
            reason = error
        except NETWORK_ERRORS as error:
            reason = _Retry(str(getattr(error, "reason", None) or error) or type(error).__name__)
        damages += reason.damaged
        failures = 0 if download.have > before else failures + 1
        if damages > 1:
            raise DataError(
                f"cannot download {download.url}: {reason}, twice; a proxy or mirror may have "
                "changed it"
            ) from None
        if failures >= ATTEMPTS:
            raise DataError(
                f"cannot download {download.url}: {reason}; check the network (HTTPS_PROXY, "
                "HF_ENDPOINT) and run again; what has arrived is kept"
            ) from None
        wait = reason.wait_s or min(LONGEST_WAIT_S, wait_s * 2 ** max(0, failures - 1))
        log.warning("%s: %s; trying again in %.0f s", download.url, reason, wait)
        time.sleep(wait)


@dataclass(kw_only=True, eq=False)
class _Download(BaseHandler):
    """A download in progress. As a handler it sees each request and response, also of redirects.

    stated_sha256, stated_size: from the hub's response headers.
    """

    url: str
    part: Path
    sha256: str | None
    size: int | None
    token: str | None
    progress: DownloadProgress | None
    stated_sha256: str | None = None
    stated_size: int | None = None

    @property
    def have(self) -> int:
        """Bytes that have arrived so far."""
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def tag_file(self) -> Path:
        """The file that keeps the ETag of what has arrived."""
        return self.part.with_name(self.part.name + ".etag")

    def discard(self) -> None:
        """Remove what has arrived."""
        self.part.unlink(missing_ok=True)
        self.tag_file.unlink(missing_ok=True)

    def attempt(self) -> None:
        """Download what is missing from the part file, then check all of it.

        Raises: _Retry, DataError, or what the network raises.
        """
        have = self.have
        if self.progress is not None:
            self.progress(have, self.size)
        try:
            with self._open(have) as response:
                self._receive(response, have if response.status == 206 else 0)
        except HTTPError as error:
            nothing_missing = error.headers.get("Content-Range") == f"bytes */{have}"
            if error.code != 416 or not nothing_missing:
                raise self._refusal(error) from None
        self._check_size(self.stated_size)
        self._check_size(self.size)
        self._check_hash(self.stated_sha256)
        self._check_hash(self.sha256)

    def http_request(self, request: Request) -> Request:
        """Add the token to requests to the URL's host, and to no other host after a redirect."""
        if self.token and urlsplit(request.full_url).netloc == urlsplit(self.url).netloc:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def http_response(self, request: Request, response: Any) -> Any:
        """Keep the sha256 and size from the hub's headers."""
        tag = response.headers.get("X-Linked-ETag", "").strip('"').lower()
        # For files outside large-file storage it is a git hash, not a hash of the content.
        if re.fullmatch("[0-9a-f]{64}", tag):
            self.stated_sha256 = tag
        size = response.headers.get("X-Linked-Size", "")
        if size.isdigit():
            self.stated_size = int(size)
        return response

    https_request, https_response = http_request, http_response

    def _open(self, have: int) -> Any:
        headers = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            tag = self.tag_file.read_text(encoding="utf-8") if self.tag_file.is_file() else ""
            if tag and not tag.startswith("W/"):
                headers["If-Range"] = tag.strip()  # if the file has changed, all of it is sent
        return build_opener(self).open(Request(self.url, headers=headers), timeout=TIMEOUT_S)

    def _receive(self, response: Any, start: int) -> None:
        """Write a response's body to the part file at offset `start`."""
        headers = response.headers
        if start and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            self.discard()
            raise _Retry("the server resumed at the wrong offset")
        stated = headers.get("Content-Length", "")
        length = start + int(stated) if stated.isdigit() else None
        if not start:
            self.tag_file.write_text(headers.get("ETag", ""), encoding="utf-8")
        done = start
        with self.part.open("ab" if start else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if self.progress is not None:
                    self.progress(done, self.size or length)
        self._check_size(length)

    def _refusal(self, error: HTTPError) -> Exception:
        """The error to raise: _Retry for a temporary one, DataError for a permanent one."""
        reason = f"HTTP {error.code} {error.reason}"
        if error.code == 416:
            self.discard()
            return _Retry(reason)
        if is_temporary(error.code):
            return _Retry(reason, wait_s=stated_wait_s(error.headers))
        remedy = "check the address"
        if error.code in (401, 403):
            remedy = "set HF_TOKEN to a token with access, and accept the terms on the hub"
        return DataError(f"cannot download {self.url}: {reason}; {remedy}")

    def _check_size(self, size: int | None) -> None:
        have = self.have
        if size is None or have == size:
            return
        if have > size:
            self.discard()
            raise _Retry(f"got {have:,} bytes, expected {size:,}", damaged=True)
        raise _Retry(f"the connection ended after {have:,} of {size:,} bytes")

    def _check_hash(self, sha256: str | None) -> None:
        if sha256 is None:
            return
        found = storage.sha256_of(self.part)
        if found != sha256.lower():
            self.discard()
            reason = f"its sha256 is {found[:12]}..., expected {sha256[:12]}..."
            raise _Retry(reason, damaged=True)
