"""Files from the network: complete and verified, or an error that says what to do.

Owns one thing: `fetch`. It resumes where it was interrupted, checks length and sha256, and leaves
nothing under the final name until both are right.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
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
ATTEMPTS = 6  # in a row that bring not one byte
LONGEST_WAIT_S = 60.0
NETWORK_ERRORS = (URLError, HTTPException, SSLError, TimeoutError, ConnectionError)

# Called with the bytes that are on disk by now and the full length, or None if it is not known.
DownloadProgress = Callable[[int, int | None], None]


class _Retry(Exception):
    """This attempt failed; another may not.

    damaged: all bytes came and they are the wrong ones.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, damaged: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.damaged = damaged


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
    """Download a file unless it is there already.

    sha256, size: what the file must be; where the server states them (the hub's X-Linked-ETag and
    X-Linked-Size, Content-Length), these are checked too. token: sent to the host of the URL
    only. wait_s: the wait before the second attempt, doubled from attempt to attempt.
    What has arrived stays in a hidden .part file and is not asked for again. Processes that want
    the same file at once wait for one another.
    Raises: DataError if the file cannot be had or is not what it must be.
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


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
                "HF_ENDPOINT) and run again, what has arrived is kept"
            ) from None
        wait = reason.wait_s or min(LONGEST_WAIT_S, wait_s * 2 ** max(0, failures - 1))
        log.warning("%s: %s; trying again in %.0f s", download.url, reason, wait)
        time.sleep(wait)


@dataclass(kw_only=True, eq=False)
class _Download(BaseHandler):
    """A file on its way. As a handler it sees every request and response, redirects included.

    stated_sha256, stated_size: what the hub says of the file.
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
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def tag_file(self) -> Path:
        """Keeps the ETag of what has arrived."""
        return self.part.with_name(self.part.name + ".etag")

    def discard(self) -> None:
        """Remove what has arrived."""
        self.part.unlink(missing_ok=True)
        self.tag_file.unlink(missing_ok=True)

    def attempt(self) -> None:
        """Get what is missing of the part file and check all of it.

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
        """Add the token where a request goes to the host that it is for."""
        if self.token and urlsplit(request.full_url).netloc == urlsplit(self.url).netloc:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def http_response(self, request: Request, response: Any) -> Any:
        """Keep what the hub states of the file."""
        tag = response.headers.get("X-Linked-ETag", "").strip('"').lower()
        # Files outside of large-file storage have a git hash there, which is none of the content.
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
                headers["If-Range"] = tag.strip()  # all of it comes instead if it has changed
        return build_opener(self).open(Request(self.url, headers=headers), timeout=TIMEOUT_S)

    def _receive(self, response: Any, start: int) -> None:
        """Write a response's body to the part file, from `start` on."""
        headers = response.headers
        if start and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            self.discard()
            raise _Retry("the server resumed at another place than asked for")
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
        """What to raise: _Retry for an error that may pass, DataError for one that will not."""
        reason = f"HTTP {error.code} {error.reason}"
        if error.code == 416:
            self.discard()
            return _Retry(reason)
        if error.code in (408, 425, 429) or error.code >= 500:
            stated = error.headers.get("Retry-After", "")
            return _Retry(
                reason, wait_s=min(LONGEST_WAIT_S, int(stated)) if stated.isdigit() else None
            )
        remedy = "check the address"
        if error.code in (401, 403):
            remedy = "set HF_TOKEN to a token that may read it, and accept its terms on the hub"
        return DataError(f"cannot download {self.url}: {reason}; {remedy}")

    def _check_size(self, size: int | None) -> None:
        have = self.have
        if size is None or have == size:
            return
        if have > size:
            self.discard()
            raise _Retry(f"{have:,} bytes came where {size:,} were expected", damaged=True)
        raise _Retry(f"the connection ended after {have:,} of {size:,} bytes")

    def _check_hash(self, sha256: str | None) -> None:
        if sha256 is None:
            return
        found = sha256_of(self.part)
        if found != sha256.lower():
            self.discard()
            reason = f"its sha256 is {found[:12]}..., {sha256[:12]}... was expected"
            raise _Retry(reason, damaged=True)
