"""The system calls that model-written code may make, as a filter for the Linux kernel.

Owns: the list and its translation to classic BPF. Does not own: entering the sandbox (`sandbox`).
The list names what CPython 3.11 to 3.14 and the standard library call when they compute, start
threads and read and write files; everything that is not on it fails with "Operation not permitted".
So what was forgotten here, or is new in a kernel, is denied. Some calls are allowed only with
harmless arguments. A filter sees arguments as numbers: it can compare a flag, not follow a pointer.

Source: kernel documentation, userspace-api/seccomp_filter; numbers from the headers of Linux 6.1
(asm/unistd_64.h on x86-64, asm-generic/unistd.h on arm64).
"""

import struct
from typing import NamedTuple

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NEWEST_NUMBER = 450  # the last call of Linux 6.1


class Machine(NamedTuple):
    """What differs between processors: the numbers of calls, and the name of their numbering."""

    audit_architecture: int
    timer_create: int
    timer_settime: int


MACHINES = {
    "x86_64": Machine(0xC000003E, 222, 223),
    "aarch64": Machine(0xC00000B7, 107, 110),
}


class Condition(NamedTuple):
    """The call is allowed only if (32-bit word & mask) is one of the values."""

    offset: int  # of the word in struct seccomp_data
    mask: int
    values: tuple[int, ...]


def _argument(index: int, *values: int, mask: int = 0xFFFFFFFF) -> Condition:
    """A condition on an argument that the kernel takes as an int: its low half."""
    return Condition(16 + 8 * index, mask, values)


def _open_flags(index: int) -> Condition:
    """Not O_TRUNC (0o1000) while opening to read, which Landlock before Linux 6.2 lets pass."""
    return _argument(index, 0, 1, 2, 0o1001, 0o1002, mask=0o1003)


def _null(index: int) -> tuple[Condition, Condition]:
    """Conditions on both halves of a pointer that must be NULL."""
    low = _argument(index, 0)
    return low, low._replace(offset=low.offset + 4)


class Call(NamedTuple):
    """An allowed system call: its numbers, None where a processor lacks it, and its conditions."""

    x86_64: int | None
    aarch64: int | None
    conditions: tuple[Condition, ...] = ()


# The flags with which glibc and musl start a thread. Without CLONE_THREAD it would be a process.
_THREAD = _argument(0, 0x3D0F00, 0x7D0F00)
# Not the clocks of other processes, which have negative numbers.
_OWN_CLOCKS = _argument(0, *range(12))

ALLOWED: dict[str, Call] = {
    # Memory of its own.
    "brk": Call(12, 214),
    "mmap": Call(9, 222),
    "munmap": Call(11, 215),
    "mremap": Call(25, 216),
    "mprotect": Call(10, 226),
    "madvise": Call(28, 233),
    # Threads. clone3 has its flags behind a pointer, so it is not here; libc then uses clone.
    "clone": Call(56, 220, (_THREAD,)),
    "futex": Call(202, 98),
    "set_robust_list": Call(273, 99),
    "rseq": Call(334, 293),
    "sched_yield": Call(24, 124),
    "sched_getaffinity": Call(204, 123),  # os.cpu_count
    "prctl": Call(157, 167, (_argument(0, 15),)),  # PR_SET_NAME: Python 3.14 names its threads
    "exit": Call(60, 93),
    "exit_group": Call(231, 94),
    # Its own signal handlers. Sending signals is not here, nor are timers that send them.
    "rt_sigaction": Call(13, 134),
    "rt_sigprocmask": Call(14, 135),
    "rt_sigreturn": Call(15, 139),
    "sigaltstack": Call(131, 132),
    "restart_syscall": Call(219, 128),  # the kernel's own, after a pause
    # Time and sleep.
    "clock_gettime": Call(228, 113, (_OWN_CLOCKS,)),
    "clock_getres": Call(229, 114, (_OWN_CLOCKS,)),
    "clock_nanosleep": Call(230, 115),
    "nanosleep": Call(35, 101),
    "gettimeofday": Call(96, 169),
    "time": Call(201, None),
    "times": Call(100, 153),
    # What it is and uses.
    "getpid": Call(39, 172),
    "getppid": Call(110, 173),
    "gettid": Call(186, 178),
    "getuid": Call(102, 174),
    "geteuid": Call(107, 175),
    "getgid": Call(104, 176),
    "getegid": Call(108, 177),
    "uname": Call(63, 160),
    "getrusage": Call(98, 165),
    "prlimit64": Call(302, 261, (_argument(0, 0), *_null(2))),  # read its own limits
    "getrandom": Call(318, 278),
    # Open files. Opening itself is Landlock's matter.
    "read": Call(0, 63),
    "write": Call(1, 64),
    "readv": Call(19, 65),
    "writev": Call(20, 66),
    "pread64": Call(17, 67),
    "pwrite64": Call(18, 68),
    "lseek": Call(8, 62),
    "close": Call(3, 57),
    "close_range": Call(436, 436),
    "ftruncate": Call(77, 46),
    "fsync": Call(74, 82),
    "fdatasync": Call(75, 83),
    "dup": Call(32, 23),
    "dup2": Call(33, None),
    "dup3": Call(292, 24),
    "pipe": Call(22, None),
    "pipe2": Call(293, 59),
    "select": Call(23, None),
    "pselect6": Call(270, 72),
    "poll": Call(7, None),
    "ppoll": Call(271, 73),
    # Copies and flags of a descriptor; not locks, leases, or signals to an owner.
    "fcntl": Call(72, 25, (_argument(1, 0, 1, 2, 3, 4, 1030),)),
    # Close on exec or not, and waiting or not; not what terminals, devices and attributes take.
    "ioctl": Call(16, 29, (_argument(1, 0x5450, 0x5451, 0x5421),)),
    # Files by name, in its folder. Not links, nor owner, mode, times and attributes: Landlock does
    # not guard those of files elsewhere. Nor truncate, before Linux 6.2.
    "open": Call(2, None, (_open_flags(1),)),
    "openat": Call(257, 56, (_open_flags(2),)),
    "mkdir": Call(83, None),
    "mkdirat": Call(258, 34),
    "rmdir": Call(84, None),
    "unlink": Call(87, None),
    "unlinkat": Call(263, 35),
    "rename": Call(82, None),
    "renameat": Call(264, 38),
    "renameat2": Call(316, 276),
    "getdents64": Call(217, 61),
    "getcwd": Call(79, 17),
    "chdir": Call(80, 49),
    "fchdir": Call(81, 50),
    "umask": Call(95, 166),
    "stat": Call(4, None),
    "lstat": Call(6, None),
    "fstat": Call(5, 80),
    "newfstatat": Call(262, 79),
    "statx": Call(332, 291),
    "access": Call(21, None),
    "faccessat": Call(269, 48),
    "faccessat2": Call(439, 439),
    "readlink": Call(89, None),
    "readlinkat": Call(267, 78),
}
_CLONE3 = 435

_LOAD, _AND, _JUMP_EQUAL, _JUMP_ABOVE, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
Step = tuple[int, int, int, int]  # operation, steps to skip if true, if false, operand


def bpf(machine: str) -> bytes:
    """The filter as the kernel takes it: struct sock_filter, 8 bytes for each step.

    machine: a key of MACHINES.
    """
    return b"".join(struct.pack("HBBI", *step) for step in steps(machine))


def steps(machine: str) -> list[Step]:
    """The filter's steps.

    Calls of another numbering (32-bit on x86-64) end the process. Numbers above the table, which
    x32's are too, fail with ENOSYS, as on a kernel that is older than they are: then libc falls
    back, where EPERM would make it fail.
    """
    program: list[Step] = [
        (_LOAD, 0, 0, 4),  # the architecture, which says what the numbers mean
        (_JUMP_EQUAL, 1, 0, MACHINES[machine].audit_architecture),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_JUMP_ABOVE, 1, 0, NEWEST_NUMBER),
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, ERRNO | ENOSYS),
    ]
    for call in ALLOWED.values():
        number = getattr(call, machine)
        if number is not None:
            body = [step for condition in call.conditions for step in _check(condition)]
            body.append((_RETURN, 0, 0, ALLOW))
            program += [(_JUMP_EQUAL, 0, len(body), number), *body]
    return [*program, (_RETURN, 0, 0, ERRNO | EPERM)]


def _check(condition: Condition) -> list[Step]:
    """Steps that deny the call unless the condition holds; they overwrite the accumulator."""
    count = len(condition.values)
    return [
        (_LOAD, 0, 0, condition.offset),
        (_AND, 0, 0, condition.mask),
        *((_JUMP_EQUAL, count - i, 0, value) for i, value in enumerate(condition.values)),
        (_RETURN, 0, 0, ERRNO | EPERM),
    ]
