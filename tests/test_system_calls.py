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


# What reaches other processes, their files' metadata, the network or the kernel's settings, by its
# numbers on (x86-64, arm64), written down apart from the list of what is allowed.
HARMFUL = {
    "process": {"fork": (57, -1), "vfork": (58, -1), "clone3": (435, 435), "execve": (59, 221),
                "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
                "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272)},
    "signal": {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "alarm": (37, -1),
               "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
               "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
               "setitimer": (38, 103), "timer_create": (222, 107), "timer_settime": (223, 110),
               "timer_delete": (226, 111), "mq_open": (240, 180), "mq_notify": (244, 184)},
    "schedule": {"setpriority": (141, 140), "sched_setparam": (142, 118),
                 "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
                 "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
                 "move_pages": (279, 239), "setrlimit": (160, 164)},
    "network": {"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206),
                "sendmsg": (46, 211), "socketpair": (53, 199), "io_uring_setup": (425, 425),
                "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    "shared": {"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
               "semop": (65, 193), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189),
               "msgrcv": (70, 188), "msgctl": (71, 187), "memfd_create": (319, 279),
               "flock": (73, 32), "splice": (275, 76), "vmsplice": (278, 75), "tee": (276, 77)},
    "metadata": {"chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53),
                 "fchmodat2": (452, 452), "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1),
                 "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1),
                 "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5),
                 "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
                 "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
                 "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
                 "link": (86, -1), "linkat": (265, 37), "symlink": (88, -1), "symlinkat": (266, 36),
                 "mknod": (133, -1), "mknodat": (259, 33), "fallocate": (285, 47),
                 "open_by_handle_at": (304, 265), "openat2": (437, 437), "creat": (85, -1)},
    "user": {"setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147),
             "setresgid": (119, 149), "setgroups": (116, 159), "setreuid": (113, 145),
             "setfsuid": (122, 151), "capset": (126, 91), "setsid": (112, 157),
             "setpgid": (109, 154)},
    "kernel": {"mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51),
               "pivot_root": (155, 41), "setns": (308, 268), "unshare": (272, 97),
               "fsopen": (430, 430),
               "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442),
               "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
               "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
               "inotify_init1": (294, 26), "fanotify_init": (300, 262), "seccomp": (317, 277),
               "landlock_restrict_self": (446, 446), "reboot": (169, 142),
               "init_module": (175, 105), "swapon": (167, 224), "sethostname": (170, 161),
               "settimeofday": (164, 170),
               "clock_settime": (227, 112), "syslog": (103, 116), "quotactl": (179, 60),
               "acct": (163, 89), "sync": (162, 81), "syncfs": (306, 267), "vhangup": (153, 58),
               "personality": (135, 92), "modify_ldt": (154, -1), "iopl": (172, -1)},
}  # fmt: skip


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


@pytest.mark.parametrize("reach", HARMFUL)
def test_calls_that_reach_others_are_denied(reach):
    for name, numbers in HARMFUL[reach].items():
        for machine, number in zip(("x86_64", "aarch64"), numbers, strict=True):
            assert decide(machine, number) in (DENY, MISSING), name


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
