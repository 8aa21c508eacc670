"""Files from the network: whole and verified, or an error that says what to do.

Owns one thing: `fetch`. It goes on where it was interrupted, checks length and sha256, and leaves
nothing under the final name until both are right.
"""

import email.message
import hashlib
import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from nanochat.system import storage
from nanochat.system.errors import DataError

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 6  # in a row that bring not one byte
LONGEST_WAIT_S = 60.0
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)

# Called with the bytes that are on disk by now and the full length, or None if nobody told it.
DownloadProgress = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class _Job:
    url: str
    part: Path
    sha256: str | None
    size: int | None
    token: str | None
    progress: DownloadProgress | None


class _Retry(Exception):
    """This attempt failed; another may not."""

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _Damaged(_Retry):
    """All bytes came and they are the wrong ones."""


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
    job = _Job(url=url, part=part, sha256=sha256, size=size, token=token, progress=progress)
    with storage.lock(path.with_name(f".{path.name}.lock")):
        if path.is_file() and size in (None, path.stat().st_size):
            return
        _try_until_whole(job, wait_s)
        storage.fsync(part)
        part.replace(path)
        _tag_file(part).unlink(missing_ok=True)
        storage.fsync_folder(path.parent)


def _try_until_whole(job: _Job, wait_s: float) -> None:
    facts = _Facts()
    failures = damages = 0
    while True:
        before = _size(job.part)
        try:
            _attempt(job, facts)
            return
        except _Retry as error:
            reason = error
        except NETWORK_ERRORS as error:
            reason = _Retry(str(getattr(error, "reason", None) or error or type(error).__name__))
        damages += isinstance(reason, _Damaged)
        failures = 0 if _size(job.part) > before else failures + 1
        if damages > 1:
            raise DataError(
                f"cannot download {job.url}: {reason}, twice; a proxy or mirror may have changed it"
            ) from None
        if failures >= ATTEMPTS:
            raise DataError(
                f"cannot download {job.url}: {reason}; check the network (HTTPS_PROXY, "
                "HF_ENDPOINT) and run again, what has arrived is kept"
            ) from None
        wait = reason.wait_s or min(LONGEST_WAIT_S, wait_s * 2 ** max(0, failures - 1))
        log.warning("%s: %s; trying again in %.0f s", job.url, reason, wait)
        time.sleep(wait)


def _attempt(job: _Job, facts: "_Facts") -> None:
    """Get what is missing of the part file and check the whole.

    Raises: _Retry, DataError, or what the network raises.
    """
    have = _size(job.part)
    if job.progress is not None:
        job.progress(have, job.size)
    try:
        response = _open(job, have, facts)
    except urllib.error.HTTPError as error:
        if not _is_complete(error, have):
            _refused(job, error)
        facts.note(error.headers)
    else:
        with response:
            facts.note(response.headers)
            _receive(response, job, have if response.status == 206 else 0)
    for full in (facts.size, job.size):
        _check_size(job.part, full)
    for sha256 in (facts.sha256, job.sha256):
        _check_hash(job.part, sha256)


def _open(job: _Job, have: int, facts: "_Facts") -> Any:
    headers = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
    if job.token:
        headers["Authorization"] = f"Bearer {job.token}"
    if have:
        headers["Range"] = f"bytes={have}-"
        tag = _read_tag(job.part)
        if tag and not tag.startswith("W/"):
            headers["If-Range"] = tag  # the whole file comes instead if it has changed
    request = urllib.request.Request(job.url, headers=headers)
    return urllib.request.build_opener(facts).open(request, timeout=TIMEOUT_S)


def _receive(response: Any, job: _Job, start: int) -> None:
    """Write a response's body to the part file, from `start` on."""
    headers = response.headers
    if start and _range_start(headers) != start:
        _discard(job.part)
        raise _Retry("the server resumed at another place than asked for")
    told = headers.get("Content-Length", "")
    length = start + int(told) if told.isdigit() else None
    if not start:
        _tag_file(job.part).write_text(headers.get("ETag") or "", encoding="utf-8")
    done = start
    with job.part.open("ab" if start else "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if job.progress is not None:
                job.progress(done, job.size or length)
    _check_size(job.part, length)


def _check_size(part: Path, size: int | None) -> None:
    have = _size(part)
    if size is None or have == size:
        return
    if have > size:
        _discard(part)
        raise _Damaged(f"{have:,} bytes came where {size:,} were expected")
    raise _Retry(f"the connection ended after {have:,} of {size:,} bytes")


def _check_hash(part: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    found = sha256_of(part)
    if found != sha256.lower():
        _discard(part)
        raise _Damaged(f"its sha256 is {found[:12]}..., {sha256[:12]}... was expected")


def _is_complete(error: urllib.error.HTTPError, have: int) -> bool:
    """Whether "range not satisfiable" means that nothing is missing any more."""
    return error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}"


def _refused(job: _Job, error: urllib.error.HTTPError) -> None:
    """Tell the errors that will pass from those that will not."""
    reason = f"HTTP {error.code} {error.reason}"
    if error.code == 416:
        _discard(job.part)
        raise _Retry(reason) from None
    if error.code in (408, 425, 429) or error.code >= 500:
        told = error.headers.get("Retry-After", "")
        raise _Retry(
            reason, wait_s=min(LONGEST_WAIT_S, int(told)) if told.isdigit() else None
        ) from None
    remedy = "check the address"
    if error.code in (401, 403):
        remedy = "set HF_TOKEN to a token that may read it, and accept its terms on the hub"
    raise DataError(f"cannot download {job.url}: {reason}; {remedy}") from None


class _Facts(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeps what the hub says of the file, and keeps the token from others."""

    def __init__(self) -> None:
        self.sha256: str | None = None
        self.size: int | None = None

    def note(self, headers: email.message.Message) -> None:
        """Keep what a response's headers say of the file."""
        tag = str(headers.get("X-Linked-ETag", "")).strip('"').lower()
        # Files outside of large-file storage have a git hash there, which is none of the content.
        self.sha256 = tag if re.fullmatch("[0-9a-f]{64}", tag) else self.sha256
        told = str(headers.get("X-Linked-Size", ""))
        self.size = int(told) if told.isdigit() else self.size

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.note(headers)
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            made.remove_header("Authorization")
        return made


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _range_start(headers: email.message.Message) -> int | None:
    found = re.match(r"bytes (\d+)-", str(headers.get("Content-Range", "")))
    return int(found[1]) if found else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _read_tag(part: Path) -> str:
    tag = _tag_file(part)
    return tag.read_text(encoding="utf-8").strip() if tag.is_file() else ""
