"""The inside of the sandbox: this file is the program that a child process of `execution` runs.

It reads a request as JSON from stdin, gives up every right it can, then executes the code. Standard
library only: the child starts without site-packages. It needs Linux on x86-64 or arm64; elsewhere,
or if the kernel refuses a part, it reports that and runs nothing.
"""

import ctypes
import json
import os
import platform
import struct
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock, the same on every architecture
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3  # Landlock access rights
MAKE_CHAR, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11

# System calls that reach other processes, the network or the kernel's configuration, as numbers
# on (x86-64, arm64); None where the architecture does not have the call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}
MACHINES = {
    # machine: (column above, audit architecture, clone, clone3, capset)
    "x86_64": (0, 0xC000003E, 56, 435, 126),
    "aarch64": (1, 0xC00000B7, 220, 435, 91),
}
CLONE_THREAD = 0x00010000
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Refused(Exception):
    """A part of the sandbox is not available here."""


def main() -> None:
    """Read the request, enter the sandbox, run the code, report that it finished."""
    report = int(sys.argv[1])
    request = json.loads(sys.stdin.buffer.read())
    try:
        enter(request)
    except Refused as error:
        os.write(report, json.dumps({"refused": str(error)}).encode())
        return
    code = compile(request["code"], "<answer>", "exec")
    exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    os.write(report, json.dumps({"finished": request["nonce"]}).encode())


def enter(request: dict[str, Any]) -> None:
    """Give up rights, from the widest to the narrowest.

    Raises: Refused naming the missing part.
    """
    if _libc is None:
        raise Refused(f"Landlock and seccomp exist on Linux only, this is {sys.platform}")
    if platform.machine() not in MACHINES:
        raise Refused(f"no system call table for {platform.machine()}")
    # The system call filter comes last: it denies prlimit64, which setting limits needs.
    limit_resources(request["limits"])
    _prctl(PR_SET_PDEATHSIG, 9)  # die with the parent process
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    drop_capabilities()
    restrict_files(request["folder"])
    filter_system_calls()


def limit_resources(limits: dict[str, int]) -> None:
    """Set hard limits: {"CPU": seconds, "AS": bytes, ...} named as in the resource module."""
    import resource

    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def drop_capabilities() -> None:
    """Empty the capability sets: root then has only the rights of an ordinary user."""
    header = struct.pack("Ii", 0x20080522, 0)
    _syscall("capset", MACHINES[platform.machine()][4], header, bytes(24))


def restrict_files(folder: str) -> None:
    """Landlock: allow reading Python's own files and writing in `folder`, nothing else.

    Source: kernel documentation, userspace-api/landlock.
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
    _allow(ruleset, "/dev/null", READ_FILE | 1 << 1)
    special = MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | EXECUTE
    _allow(ruleset, folder, handled & ~special)
    _syscall("Landlock", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _readable() -> list[str]:
    """Paths that importing the standard library needs."""
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    others = ["/usr/share/zoneinfo", "/dev/urandom"]
    return [path for path in [*sys.path, *libraries, *others] if path and Path(path).exists()]


def _allow(ruleset: int, path: str, access: int) -> None:
    if not Path(path).is_dir():
        access &= EXECUTE | READ_FILE | 1 << 1
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _syscall("Landlock", ADD_RULE, ruleset, 1, struct.pack("=Qi", access, handle), 0)
    os.close(handle)


def filter_system_calls() -> None:
    """seccomp: allow threads; deny processes, sockets, signals and the rest of DENIED.

    Source: kernel documentation, userspace-api/seccomp_filter; classic BPF.
    """
    column, architecture, clone, clone3, _ = MACHINES[platform.machine()]
    denied = [numbers[column] for numbers in DENIED.values()]
    load, jump_equal, jump_at_least, jump_set, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [
        (load, 0, 0, 4),  # the architecture; call numbers depend on it
        (jump_equal, 1, 0, architecture),
        (ret, 0, 0, KILL),
        (load, 0, 0, 0),  # the number of the call
        (jump_at_least, 0, 1, 0x40000000),  # the x32 variants of the x86-64 calls
        (ret, 0, 0, ERRNO | EPERM),
        (jump_equal, 0, 1, clone3),  # its flags are in memory, out of reach; libc then uses clone
        (ret, 0, 0, ERRNO | ENOSYS),
    ]
    for number in denied:
        if number is not None:
            program += [(jump_equal, 0, 1, number), (ret, 0, 0, ERRNO | EPERM)]
    program += [
        (jump_equal, 0, 3, clone),
        (load, 0, 0, 16),  # the low half of its first argument: the flags
        (jump_set, 1, 0, CLONE_THREAD),
        (ret, 0, 0, ERRNO | EPERM),
        (ret, 0, 0, ALLOW),
    ]
    packed = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, 2, header)


def _prctl(option: int, argument: int, pointer: bytes | None = None) -> None:
    assert _libc is not None
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), pointer or zero, zero, zero) != 0:
        part = "seccomp" if option == PR_SET_SECCOMP else f"prctl({option})"
        raise Refused(f"{part}: {os.strerror(ctypes.get_errno())}")


def _syscall(part: str, number: int, *arguments: Any) -> int:
    assert _libc is not None
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise Refused(f"{part}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()
