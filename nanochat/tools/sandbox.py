"""The inside of the sandbox: this file is the program that the child processes of `execution` run.

It reads a job as JSON from stdin, gives up every right it can, says so on a pipe, closes that pipe,
and only then plays its role:

- "program" executes code and ends.
- "candidate" executes code, then calls one of its functions as often as the judge asks.
- "judge" executes tests that call the candidate's function. It gets results, never code: what
  arrives is decoded into fresh numbers, strings, lists and so on, which behave as Python's own.

Standard library only: the child starts without site-packages. If the kernel refuses a part of the
sandbox, it reports that and runs nothing. Paths are strings here: importing pathlib would take a
tenth of the child's start.
"""

import builtins
import ctypes
import functools
import json
import os
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any, BinaryIO

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock, the same on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # its access rights
MAKE_CHAR, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
CAP_DAC_READ_SEARCH = 1 << 2
# chown, DAC override, fowner, kill, setgid, setuid: with them root rules over nobody's processes
MANAGE_OTHERS = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7
NOBODY = 65534  # the user and group that own nothing
MAX_MESSAGE_BYTES = 1 << 20  # of a call's arguments or its result


class Refused(Exception):
    """A part of the sandbox is not available here."""


def main() -> None:
    """Read the job, enter the sandbox, report it, play the role."""
    job = json.loads(sys.stdin.buffer.read())
    os.close(0)  # the job is not there to be read again
    os.open(os.devnull, os.O_RDONLY)  # takes the lowest free number, 0
    try:
        user = enter(job)
    except (Refused, OSError) as error:
        os.write(job["status"], f"-{error}".encode())
        sys.exit(1)
    os.write(job["status"], f"+{user}".encode())
    os.close(job["status"])  # what it says from here on is not believed
    ROLES[job["role"]](job)


# --- roles


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Execute the job's code as the main module; returns the module's names."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # where dataclasses and typing look names up
    exec(compile(job["code"], "<answer>", "exec"), module.__dict__)
    return module.__dict__


def answer(job: dict[str, Any]) -> None:
    """Execute the code, then answer the judge's calls of its function."""
    function = run(job)[job["function"]]
    with os.fdopen(job["calls"], "rb") as calls, os.fdopen(job["results"], "wb") as results:
        while line := calls.readline():
            args, kwargs = decode(json.loads(line))
            try:
                message = {"returned": encode(function(*args, **kwargs))}
            except Exception as error:
                message = {"raised": type(error).__name__, "text": str(error)[:1000]}
            results.write(json.dumps(message).encode() + b"\n")
            results.flush()


def judge(job: dict[str, Any]) -> None:
    """Run the tests: exit normally if `check` finds nothing wrong with the candidate.

    The function's own name means the candidate too, as it does where both are one program.
    """
    with os.fdopen(job["results"], "rb") as results, os.fdopen(job["calls"], "wb") as calls:
        candidate = remote(calls, results)
        names = run(job)
        names[job["function"]] = candidate
        names["check"](candidate)


ROLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "program": run,
    "candidate": answer,
    "judge": judge,
}


def remote(calls: BinaryIO, results: BinaryIO) -> Callable[..., Any]:
    """The candidate's function as seen by the judge: calls go out, and results come back, as data.

    It raises what the candidate raised if that is one of Python's exceptions, ValueError for what
    is not a result, EOFError if the candidate has ended.
    """

    def candidate(*args: Any, **kwargs: Any) -> Any:
        calls.write(json.dumps(encode((args, kwargs))).encode() + b"\n")
        calls.flush()
        line = results.readline(MAX_MESSAGE_BYTES)
        if not line.endswith(b"\n"):
            raise ValueError("the result is too long") if line else EOFError("the candidate ended")
        match json.loads(line):
            case {"returned": value}:
                return decode(value)
            case {"raised": str(name), "text": str(text)}:
                kind = getattr(builtins, name, None)
                if isinstance(kind, type) and issubclass(kind, Exception):
                    raise kind(text)
                raise Exception(f"{name}: {text}")
        raise ValueError("what the candidate sent is not a result")

    return candidate


def encode(value: Any) -> Any:
    """Plain data as JSON that keeps its types; a stand-in for everything else.

    Subclasses become what they extend (a Counter a dict), which is equal to them.
    """
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return {"int": hex(value)}
        case float():
            return {"float": float.hex(value)}
        case complex():
            return {"complex": [encode(value.real), encode(value.imag)]}
        case bytes() | bytearray():
            return {type(value).__name__: value.hex()}
        case list():
            return [encode(item) for item in value]
        case dict():
            return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    return {"other": type(value).__name__}


def decode(value: Any) -> Any:
    """The value that was encoded; a fresh object, equal to nothing, for what is not plain data.

    Raises: ValueError, TypeError or RecursionError for what `encode` does not write.
    """
    match value:
        case None | bool() | str():
            return value
        case list():
            return [decode(item) for item in value]
        case {"int": str(text)}:
            return int(text, 16)
        case {"float": str(text)}:
            return float.fromhex(text)
        case {"complex": [real, imaginary]}:
            return complex(decode(real), decode(imaginary))
        case {"bytes": str(text)}:
            return bytes.fromhex(text)
        case {"bytearray": str(text)}:
            return bytearray.fromhex(text)
        case {"tuple": list(items)}:
            return tuple([decode(item) for item in items])
        case {"set": list(items)}:
            return {decode(item) for item in items}
        case {"frozenset": list(items)}:
            return frozenset([decode(item) for item in items])
        case {"dict": list(items)}:
            return {decode(key): decode(item) for key, item in items}
        case {"other": str()}:
            return object()
    raise ValueError("what the candidate sent is not plain data")


# --- confinement


def enter(job: dict[str, Any]) -> str:
    """Give up rights, from the widest to the narrowest; returns the user that it runs as.

    Raises: Refused or OSError naming the missing part.
    """
    limit_resources(job["limits"])
    ruleset = file_rules(job["folder"])  # opens files, so before it becomes nobody
    user = drop_privileges(job["folder"])
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user would undo it
    if os.getppid() != job["parent"]:  # the parent died before
        os._exit(1)
    limit_wall_clock(job["wall_s"], job["timer_create"], job["timer_settime"])
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _syscall("Landlock", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    filter_system_calls(bytes.fromhex(job["filter"]))
    return user


def limit_resources(limits: dict[str, int]) -> None:
    """Set hard limits: {"CPU": seconds, "AS": bytes, ...} named as in the resource module."""
    import resource

    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def limit_wall_clock(seconds: float, create: int, settime: int) -> None:
    """Have the kernel kill this process after so long, whatever its parent does.

    A timer may send SIGKILL, which cannot be blocked; the calls that could stop it are denied.
    """
    event = struct.pack("QiI48x", 0, signal.SIGKILL, 0)  # 0: send the signal to the process
    timer = ctypes.c_int()
    _syscall("timer", create, 1, event, ctypes.byref(timer))  # 1: CLOCK_MONOTONIC
    when = struct.pack("qqqq", 0, 0, int(seconds), int(seconds % 1 * 1e9))
    _syscall("timer", settime, timer.value, 0, when, None)


def drop_privileges(folder: str | None) -> str:
    """Become nobody if this is root, and empty the capability sets. Returns who it is now.

    Nobody may be unable to read Python's files, say below /root. It then keeps the right to read
    whatever Landlock allows; where root does not have that, it stays root without any capability.
    """
    if os.geteuid() != 0:
        _set_capabilities(0)
        return f"user {os.getuid()}"
    permitted = _permitted()
    if permitted & MANAGE_OTHERS != MANAGE_OTHERS:
        return _stay_root("it may not manage other users' processes and files")
    try:
        hidden = _hidden_from_nobody(folder)
        if hidden and not permitted & CAP_DAC_READ_SEARCH:
            return _stay_root(f"others cannot read {hidden}")
        if folder:
            os.chown(folder, NOBODY, NOBODY)
    except OSError as error:  # a container that has no other users, a file system without owners
        return _stay_root(str(error))
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _set_capabilities(CAP_DAC_READ_SEARCH if hidden else 0)
    return "nobody, who may read Python's files" if hidden else "nobody"


def _stay_root(reason: str) -> str:
    _set_capabilities(0)
    return f"root without capabilities, as {reason}"


def _hidden_from_nobody(folder: str | None) -> str | None:
    """The first path that the program needs and nobody cannot reach.

    Raises: OSError where this process may not become nobody.
    """
    folders = [os.path.dirname(folder or "/"), *filter(os.path.isdir, sys.path)]
    needed = [(os.__file__, os.R_OK), *((path, os.X_OK) for path in folders)]
    os.setgroups([])
    os.setegid(NOBODY)
    try:
        os.seteuid(NOBODY)
        hidden = [path for path, how in needed if not os.access(path, how, effective_ids=True)]
        os.seteuid(0)
    finally:
        os.setegid(0)
    return hidden[0] if hidden else None


def _permitted() -> int:
    """The capabilities that this process may use, as a bit set (the first 32)."""
    data = ctypes.create_string_buffer(24)
    if _libc().capget(struct.pack("Ii", 0x20080522, 0), data) != 0:
        raise Refused(f"capget: {os.strerror(ctypes.get_errno())}")
    return int(struct.unpack_from("I", data, 4)[0])


def _set_capabilities(kept: int) -> None:
    """Have these capabilities at most, and pass none on."""
    data = struct.pack("6I", kept, kept, 0, 0, 0, 0)
    if _libc().capset(struct.pack("Ii", 0x20080522, 0), data) != 0:
        raise Refused(f"capset: {os.strerror(ctypes.get_errno())}")


def file_rules(folder: str | None) -> int:
    """Landlock rules: read Python's own files, and write in `folder`, nothing else.

    Returns the rules' file descriptor. Source: kernel documentation, userspace-api/landlock.
    """
    version = _syscall("Landlock", CREATE_RULESET, None, 0, 1)
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    handled = (1 << rights) - 1
    network = 0b11 if version >= 4 else 0  # bind and connect TCP
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("QQQ", handled, network, scoped)
    ruleset = _syscall("Landlock", CREATE_RULESET, attributes, size, 0)
    for path in _readable():
        _allow(ruleset, path, EXECUTE | READ_FILE | READ_DIR)
    _allow(ruleset, os.devnull, READ_FILE | WRITE_FILE)
    if folder is not None:
        special = MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | EXECUTE
        _allow(ruleset, folder, handled & ~special)
    return ruleset


def _readable() -> list[str]:
    """Paths that importing the standard library needs."""
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    others = [os.path.join(sys.base_prefix, "lib"), "/usr/share/zoneinfo", "/dev/urandom"]
    return [path for path in [*sys.path, *libraries, *others] if path and os.path.exists(path)]


def _allow(ruleset: int, path: str, access: int) -> None:
    if not os.path.isdir(path):
        access &= EXECUTE | READ_FILE | WRITE_FILE
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _syscall("Landlock", ADD_RULE, ruleset, 1, struct.pack("=Qi", access, handle), 0)
    os.close(handle)


def filter_system_calls(program: bytes) -> None:
    """seccomp: install the filter that `system_calls` made."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, 2, header)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int, pointer: bytes | None = None) -> None:
    zero = ctypes.c_ulong(0)
    if _libc().prctl(option, ctypes.c_ulong(argument), pointer or zero, zero, zero) != 0:
        part = "seccomp" if option == PR_SET_SECCOMP else f"prctl({option})"
        raise Refused(f"{part}: {os.strerror(ctypes.get_errno())}")


def _syscall(part: str, number: int, *arguments: Any) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc().syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise Refused(f"{part}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()
