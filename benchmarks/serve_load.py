"""Load on a running server: streams side by side, clients that leave, clients that read slowly.

    nanochat chat_web --run pocket --port 8000 --max-in-flight 64
    python benchmarks/serve_load.py --url http://127.0.0.1:8000

Measures one stream, 16 streams, then `--streams` of them until `--requests` have been answered or
`--seconds` have passed. Of the last, a tenth leaves in mid-answer and a tenth reads slowly, and
half ask the same question. Then everything must be as before: no status but 200, 429 and 503, an
error object in OpenAI's shape with those two, memory flat, every slot free. Exit status 1 if not.
Throughput is of the server's own count (/metrics), so that pieces of several tokens count in full.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PATH = "/v1/chat/completions"
RETRY_S = 0.2
READ_SLOWLY_S = 0.05  # between two events
TENTH = 0.1


@dataclass
class Phase:
    """What the streams of one phase saw; times in seconds."""

    streams: int
    statuses: Counter[int] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    longest_gap_s: list[float] = field(default_factory=list)
    left: int = 0
    faults: list[str] = field(default_factory=list)
    tokens_per_s: float = 0.0

    def line(self) -> str:
        """The phase in a line."""
        first, gap = percentiles(self.first_s), percentiles(self.longest_gap_s)
        statuses = ", ".join(f"{status} x {n}" for status, n in sorted(self.statuses.items()))
        return (
            f"{self.streams:>3} streams  {self.tokens_per_s:>6.0f} tok/s  first token p50 "
            f"{first[0] * 1e3:.0f} p95 {first[1] * 1e3:.0f} ms  longest gap p50 {gap[0] * 1e3:.0f} "
            f"p95 {gap[1] * 1e3:.0f} ms  {statuses}; {self.left} left"
        )


def percentiles(values: list[float]) -> tuple[float, float]:
    """The median and the 95th percentile; 0 without values."""
    ordered = sorted(values) or [0.0]
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


class Server:
    """A server under load."""

    def __init__(self, url: str, key: str) -> None:
        address = urllib.parse.urlsplit(url)
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        self._url, self._key = url.rstrip("/"), key

    def get(self, path: str) -> str:
        """The body of a GET."""
        headers = {"authorization": f"Bearer {self._key}"}
        asked = urllib.request.Request(self._url + path, headers=headers)
        with urllib.request.urlopen(asked, timeout=30) as response:
            return str(response.read().decode())

    def metric(self, name: str) -> float:
        """A value of /metrics, summed over the models."""
        lines = [line for line in self.get("/metrics").splitlines() if line[:1] != "#"]
        return sum(float(x.split()[-1]) for x in lines if x.replace("{", " ").split()[0] == name)

    def request(self, body: dict[str, Any]) -> bytes:
        """The bytes of a POST that asks for an answer."""
        data = json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


async def answer(server: Server, phase: Phase, body: dict[str, Any], *, mood: str) -> None:
    """Ask once, and note the status, the time to the first token and the longest pause after it."""
    start_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(server.request(body))
        status = int((await reader.readline()).split()[1])
        phase.statuses[status] += 1
        if status != 200:
            told = json.loads((await reader.read()).rpartition(b"\r\n\r\n")[2])
            if status not in (429, 503) or set(told["error"]) != set(
                "message type param code".split()
            ):
                phase.faults.append(f"{status}: {told}")
            await asyncio.sleep(RETRY_S)
            return
        await read_events(reader, phase, start_s, mood=mood)
    except (OSError, ValueError, IndexError) as error:
        phase.faults.append(repr(error))
    finally:
        writer.close()


async def read_events(
    reader: asyncio.StreamReader, phase: Phase, start_s: float, *, mood: str
) -> None:
    """Read the stream; mood: "patient", "slow", or "leaves" somewhere in it."""
    before_s, longest_s, pieces, done = 0.0, 0.0, 0, False
    leave_at = random.randint(0, 40)
    while line := await reader.readline():
        done = done or line.startswith(b"data: [DONE]")
        if b'"content"' not in line or b'"content": ""' in line:
            if b'data: {"error"' in line:
                phase.faults.append(line.decode())
            continue
        now_s = time.perf_counter()
        if pieces:
            longest_s = max(longest_s, now_s - before_s)
        elif mood == "patient":
            phase.first_s.append(now_s - start_s)
        before_s, pieces = now_s, pieces + 1
        if mood == "leaves" and pieces >= leave_at:
            phase.left += 1
            return
        if mood == "slow":
            await asyncio.sleep(READ_SLOWLY_S)
    if not done:
        phase.faults.append("a stream ended without [DONE]")
    if mood == "patient":
        phase.longest_gap_s.append(longest_s)


async def load(
    server: Server, *, streams: int, seconds: float, requests: int, disturbed: bool
) -> Phase:
    """Keep `streams` answers open until the time or the number of requests is reached."""
    phase = Phase(streams)
    before = await asyncio.to_thread(server.metric, "nanochat_generation_tokens_total")
    start_s = time.perf_counter()
    count = 0

    async def client() -> None:
        nonlocal count
        while time.perf_counter() - start_s < seconds and count < requests:
            count += 1
            mood = "patient"
            if disturbed and random.random() < 2 * TENTH:
                mood = random.choice(("slow", "leaves"))
            about = "dogs" if disturbed and random.random() < 0.5 else f"number {count}"
            ask = {"role": "user", "content": f"Tell me a long story about {about}."}
            body = {"messages": [ask], "stream": True, "seed": count}
            await answer(server, phase, body, mood=mood)

    await asyncio.gather(*(client() for _ in range(streams)))
    after = await asyncio.to_thread(server.metric, "nanochat_generation_tokens_total")
    phase.tokens_per_s = (after - before) / (time.perf_counter() - start_s)
    return phase


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="none", help="the server's API key")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--quiet-seconds", type=float, default=15.0, help="for 1 and 16 streams")
    options = parser.parse_args()
    random.seed(0)
    server = Server(options.url, options.key)

    def run(streams: int, seconds: float, requests: int, *, disturbed: bool = False) -> Phase:
        phase = asyncio.run(
            load(server, streams=streams, seconds=seconds, requests=requests, disturbed=disturbed)
        )
        print(phase.line(), flush=True)
        return phase

    run(1, 2, 10**9)  # warms up
    one, sixteen = (run(n, options.quiet_seconds, 10**9) for n in (1, 16))
    memory = "process_resident_memory_bytes"
    run(options.streams, options.seconds / 10, options.requests // 10, disturbed=True)
    begin_bytes = server.metric(memory)
    many = run(options.streams, options.seconds, options.requests, disturbed=True)
    time.sleep(2)
    end_bytes, health = server.metric(memory), json.loads(server.get("/health"))
    first = [percentiles(phase.first_s)[1] for phase in (one, sixteen)]
    print(f"16 streams: {sixteen.tokens_per_s / one.tokens_per_s:.1f} times the tokens/s of one")
    print(f"16 streams: {first[1] / first[0]:.1f} times the first token's p95 of one")
    print(f"memory: {begin_bytes / 1e6:.0f} MB, then {end_bytes / 1e6:.0f} MB; {health}")
    faults = [*one.faults, *sixteen.faults, *many.faults]
    busy = [m for m in health["models"] if m["slots_in_use"] or m["waiting"]]
    if health["in_flight"] or busy:
        faults.append("not every slot is free")
    if end_bytes > 1.1 * begin_bytes + 50e6:
        faults.append("memory has grown")
    print(f"faults: {len(faults)}", *faults[:20], sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
