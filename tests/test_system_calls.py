"""The filter of system calls denies everything that is not on the list, on both processors."""

from __future__ import annotations

import pytest

from nanochat.tools.system_calls import (
    ALLOW,
    ALLOWED,
    ENOSYS,
    EPERM,
    ERRNO,
    KILL,
    MACHINES,
    NEWEST_NUMBER,
    steps,
)

DENY, MISSING = ERRNO | EPERM, ERRNO | ENOSYS


def decide(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter returns for a call, interpreted as the kernel does."""
    words = [number, architecture or MACHINES[machine].audit_architecture, 0, 0]
    for argument in [*arguments, *[0] * (6 - len(arguments))]:
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    program, position, value = steps(machine), 0, 0
    while True:
        operation, if_true, if_false, operand = program[position]
        position += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            value = words[operand // 4]
        elif operation == 0x54:
            value &= operand
        else:
            holds = {0x15: value == operand, 0x25: value > operand}[operation]
            position += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_only_the_calls_of_the_table_are_allowed(machine):
    free = {getattr(c, machine) for c in ALLOWED.values() if not c.conditions} - {None}
    some = {getattr(c, machine) for c in ALLOWED.values() if c.conditions} - {None}
    for number in [*range(NEWEST_NUMBER + 1), 452, 463, 1000, 0x3FFFFFFF]:
        missing = MISSING if number == 435 or number > NEWEST_NUMBER else DENY
        if number not in some:
            assert decide(machine, number) == (ALLOW if number in free else missing), number
        # x32's numbers, and those of another processor's table
        assert decide(machine, number | 0x40000000) == MISSING
        assert decide(machine, number, architecture=0x40000003) == KILL
    assert not free & some


@pytest.mark.parametrize(
    ("name", "allowed", "denied"),
    [
        # fork; a thread in a new user namespace, or sharing too little
        ("clone", [(0x3D0F00,), (0x7D0F00,)], [(17,), (0x10010F00,), (0x10000,), (0x103D0F00,)]),
        # PR_SET_PDEATHSIG, DUMPABLE, KEEPCAPS, SECCOMP, PTRACER
        ("prctl", [(15,)], [(1,), (4,), (8,), (22,), (0x59616D61,)]),
        # F_SETLK, SETOWN, SETSIG, SETOWN_EX, SETLEASE, NOTIFY, SETPIPE_SZ, ADD_SEALS
        (
            "fcntl",
            [(0, n) for n in (0, 1, 2, 3, 4, 1030)],
            [(0, n) for n in (6, 8, 10, 15, 1024, 1026, 1031, 1033)],
        ),
        # FS_IOC_SETFLAGS, TIOCSTI, FIOASYNC, FIOSETOWN, SIOCSPGRP
        (
            "ioctl",
            [(0, 0x5421), (0, 0x5450), (0, 0x5451)],
            [(0, n) for n in (0x40086602, 0x5412, 0x5452, 0x8901, 0x8902)],
        ),
        # limits of another process, and new limits, also at an address whose low half is 0
        ("prlimit64", [(0, 7, 0, 1 << 40)], [(1, 7), (0, 7, 8), (0, 7, 1 << 32)]),
        # O_TRUNC without writing, and the mode that is neither
        (
            "openat",
            [(0, 0, f) for f in (0, 1, 2, 0o1101, 0o1102, 0o2000001, 0o2101)],
            [(0, 0, f) for f in (0o1000, 0o1100, 0o1003, 3)],
        ),
        ("clock_gettime", [(0,), (1,), (2,), (3,)], [(-6,), (-2,), (16,)]),
    ],
)
def test_calls_that_are_partly_harmless_are_allowed_with_harmless_arguments(name, allowed, denied):
    for machine in MACHINES:
        number = getattr(ALLOWED[name], machine)
        assert [decide(machine, number, *a) for a in allowed] == [ALLOW] * len(allowed)
        assert [decide(machine, number, *a) for a in denied] == [DENY] * len(denied)


def test_open_is_filtered_as_openat_is():
    for flags in (0, 1, 2, 0o1101, 0o1000, 0o1003):
        at = decide("x86_64", 257, 0, 0, flags)
        assert decide("x86_64", 2, 0, flags) == at, oct(flags)
