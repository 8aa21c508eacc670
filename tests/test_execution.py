"""Model-written programs reach nothing outside, end within their limits, and cannot fake a pass."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.tasks.humaneval import HumanEval
from nanochat.system.errors import ConfigError
from nanochat.tools import execution, sandbox, system_calls

PROBLEMS = Path(__file__).parents[2] / "shared" / "data" / "humaneval"
NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def confinement() -> str:
    try:
        return execution.isolation()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where the programs' folders are made; an ordinary user may enter it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


# --- what works

STANDARD_LIBRARY = """
import base64, bisect, collections, copy, csv, ctypes, dataclasses, datetime, decimal, difflib, enum
import fractions, functools, glob, gzip, hashlib, heapq, inspect, io, itertools, json, logging, math
import mmap, operator, os, pathlib, pickle, platform, pprint, queue, random, re, resource, secrets
import select, shutil, signal, statistics, string, struct, sys, tempfile, textwrap, threading, time
import traceback, types, typing, unicodedata, unittest, urllib.parse, uuid, warnings, zlib, zoneinfo
from concurrent.futures import ThreadPoolExecutor

threads = [threading.Thread(target=time.sleep, args=(0.001,)) for _ in range(4)]
[thread.start() for thread in threads], [thread.join(timeout=5) for thread in threads]
with ThreadPoolExecutor(3) as pool:
    assert list(pool.map(abs, [-1, 2])) == [1, 2]
assert not threading.Event().wait(0.001)
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "a", "b")
    path.parent.mkdir()
    path.write_text("kept é")
    path = path.rename(path.with_name("c"))
    assert path.read_text() == "kept é" and os.listdir(path.parent) == ["c"] and path.stat().st_size
    shutil.copyfile(path, folder + "/d")
    with open(folder + "/d", "r+b") as file:
        file.seek(2), file.write(b"xyz"), file.truncate(4), file.flush(), os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 4, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:] == b"kexy"
    assert len(glob.glob(folder + "/**", recursive=True)) == 4 and os.path.realpath(path)
    os.replace(folder + "/d", folder + "/e"), os.unlink(folder + "/e"), shutil.rmtree(path.parent)
    os.chdir(folder), os.chdir("..")
with tempfile.NamedTemporaryFile("w") as file, tempfile.TemporaryFile() as other:
    file.write("x"), other.write(b"x")
assert os.listdir(".") == []
@dataclasses.dataclass
class Point:
    x: "int"
    other: "Point | None" = None
assert typing.get_type_hints(Point)["x"] is int and pickle.loads(pickle.dumps(Point(1))) == Point(1)
def endless(n): return endless(n + 1)
try: endless(0)
except RecursionError: pass
reader, writer = os.pipe()
os.write(writer, b"x"), os.set_blocking(reader, False), os.set_inheritable(reader, True)
assert select.select([reader], [], [], 1)[0] == [reader] and os.read(os.dup(reader), 9) == b"x"
signal.signal(signal.SIGINT, signal.default_int_handler), signal.raise_signal
assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)(1) == 2
random.seed(), secrets.token_hex(), uuid.uuid4(), os.urandom(3), time.sleep(0.001)
os.getpid(), os.cpu_count(), platform.platform(), os.times(), resource.getrusage(0), os.umask(0)
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) and time.process_time()
assert datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("UTC")).isoformat().endswith("+00:00")
assert hashlib.sha256(b"").hexdigest()[:4] == "e3b0" and json.loads("[1]") == [1]
assert decimal.Decimal("0.1") + 1 == decimal.Decimal("1.1") and unicodedata.name("é")
large = bytearray(200 << 20)
try: import sqlite3
except ImportError: pass
else: assert sqlite3.connect(":memory:").execute("select 1 + 1").fetchall() == [(2,)]
print(math.comb(10, 3), "é", input is not None, __name__)
"""


def test_the_standard_library_works():
    result = execution.run_python(STANDARD_LIBRARY)
    assert (result.stderr, result.stdout) == ("", "120 é True __main__\n")
    assert (result.ok, result.exit_code, result.timed_out) == (True, 0, False)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("x = '\\0'", ""),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("import numpy", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", ""),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("input()", "EOFError"),
        ("import os; os.lseek(0, 0, 0); assert os.read(0, 9)", "AssertionError"),  # the job
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("import os; os.close(1); os.close(2); 1 / 0", ""),
        ("import os; os.write(2, b'\\xff\\xfe'); os._exit(1)", "\ufffd\ufffd"),
        ("import ctypes; ctypes.string_at(0)", ""),
    ],
)
def test_a_program_that_fails_says_why(program, error):
    result = execution.run_python(program)
    assert result.ok is (program == "x = '\\0'")
    assert error in result.stderr


# --- what does not

OUTSIDE = """
import ctypes, fcntl, multiprocessing, os, resource, signal, socket, subprocess
def ctypes_call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1: raise OSError(ctypes.get_errno(), name)
victim = {victim!r}
attempts = [
    lambda: open("/etc/passwd"), lambda: open(victim), lambda: open(victim, "a"),
    lambda: open("/proc/self/environ"), lambda: open("/proc/self/mem", "r+b"),
    lambda: open(f"/proc/{{os.getppid()}}/environ"), lambda: open("/proc/1/environ"),
    lambda: os.listdir("/"), lambda: os.listdir(os.path.dirname(os.getcwd())),
    lambda: open("../escape", "w"), lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC),
    lambda: os.truncate(victim, 0), lambda: os.unlink(victim), lambda: os.rename(victim, "mine"),
    lambda: os.rename(os.getcwd(), os.getcwd() + "2"), lambda: os.rmdir(os.getcwd()),
    lambda: os.symlink(victim, "link"), lambda: os.link(victim, "link"), lambda: os.mkfifo("fifo"),
    lambda: os.chmod(victim, 0o777), lambda: os.chown(victim, 1, 1), lambda: os.utime(victim),
    lambda: os.chmod(os.__file__, 0o777), lambda: os.utime("."), lambda: os.chmod(".", 0),
    lambda: os.setxattr(victim, "user.x", b"1"), lambda: os.removexattr(victim, "user.x"),
    lambda: socket.socket(), lambda: socket.create_connection(("127.0.0.1", 80)),
    lambda: socket.socketpair(), lambda: subprocess.run(["ls"]), lambda: os.fork(),
    lambda: os.execv("/bin/ls", ["ls"]), lambda: os.posix_spawn("/bin/ls", ["ls"], {{}}),
    lambda: multiprocessing.Process(target=print).start(), lambda: os.system("ls") and os.fork(),
    lambda: os.kill(os.getppid(), 0), lambda: os.kill(os.getpid(), signal.SIGTERM),
    lambda: os.killpg(0, 0), lambda: os.setuid(0), lambda: os.setuid(12345), lambda: os.chroot("."),
    lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 5), lambda: os.nice(1),
    lambda: os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0)),
    lambda: os.sched_setaffinity(0, [0]), lambda: os.setsid(), lambda: os.getpgid(os.getppid()),
    lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)),
    lambda: resource.prlimit(os.getppid(), resource.RLIMIT_AS),
    lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()), lambda: fcntl.fcntl(0, 10, 9),
    lambda: fcntl.fcntl(0, fcntl.F_NOTIFY, 1), lambda: fcntl.fcntl(0, 1024, 0),
    lambda: fcntl.ioctl(os.open(os.__file__, 0), 0x40086602, bytes(8)), lambda: fcntl.flock(0, 2),
    lambda: signal.setitimer(signal.ITIMER_REAL, 1), lambda: ctypes_call("ptrace", 16, 1, 0, 0),
    lambda: ctypes_call("prctl", 1, 0, 0, 0, 0), lambda: ctypes_call("prctl", 4, 1, 0, 0, 0),
    lambda: ctypes_call("shmat", {shared}, 0, 0), lambda: ctypes_call("shmctl", {shared}, 0, 0),
    lambda: ctypes_call("memfd_create", b"x", 0), lambda: ctypes_call("inotify_init"),
    lambda: ctypes_call("timer_delete", 0), lambda: ctypes_call("mq_open", b"/x", 0o102, 0o600, 0),
]
for number, attempt in enumerate(attempts):
    try: attempt()
    except (OSError, ValueError): continue
    except BaseException as error: print(number, repr(error))
    else: print(number, "succeeded")
print(len(attempts), "tried")
"""


@pytest.mark.parametrize(
    ("part", "lack"),
    [
        ("", ""),
        ("None, 0, 1)", "None, 0, 1) and 1"),  # Linux 5.13: no guard of truncation and signals
        ("= _permitted()", "= 0"),  # root that cannot become nobody
    ],
)
def test_the_outside_is_out_of_reach(part, lack, tmp_path, monkeypatch):
    weaker, program = tmp_path / "sandbox.py", execution.CHILD.read_text(encoding="utf-8")
    assert part in program
    weaker.write_text(program.replace(part, lack) if part else program, encoding="utf-8")
    monkeypatch.setattr(execution, "CHILD", weaker)
    libc, victim = ctypes.CDLL(None), tmp_path / "victim"
    shared = max(libc.shmget(0, 4096, 0o1666), 0)  # System V shared memory, for everybody
    victim.write_text("secret")
    victim.chmod(0o666)
    before = victim.stat()
    result = execution.run_python(OUTSIDE.format(victim=str(victim), shared=shared))
    assert libc.shmctl(shared, 0, None) == 0 or not shared
    assert result.stdout == f"{OUTSIDE.count('lambda: ')} tried\n", result.stderr
    assert (victim.read_text(), victim.stat().st_mode) == ("secret", before.st_mode)
    assert victim.stat().st_mtime_ns == before.st_mtime_ns


EVERY_CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers}:
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    error = ctypes.get_errno()
    if result != -1 or error not in (1, 38): print(number, result, error)
print("tried")
"""


def test_every_system_call_off_the_list_is_denied():
    machine = os.uname().machine
    allowed = {getattr(call, machine) for call in system_calls.ALLOWED.values()}
    passed_by = {335, 336} if machine == "x86_64" else set()  # uprobes, which no filter sees
    numbers = [n for n in range(600) if n not in allowed | passed_by]
    numbers += [n | 0x40000000 for n in range(0, 600, 7)]  # x32
    result = execution.run_python(EVERY_CALL.format(numbers=numbers), timeout_s=20)
    assert (result.stdout, result.stderr) == ("tried\n", "")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="instructions of x86-64")
def test_calls_by_the_32_bit_numbering_end_the_program():
    program = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    # SIGSEGV where the kernel has no 32-bit calls
    assert execution.run_python(program).exit_code in (-signal.SIGSYS, -signal.SIGSEGV)


def test_it_runs_as_nobody_without_roots_capabilities(confinement):
    with execution._folder() as folder:
        wait = "import time; open('up', 'w'); time.sleep(1000)"
        job = execution._job("program", wait, folder, 100, execution.MEMORY_BYTES)
        with execution._started(job) as child:
            while not (folder / "up").exists():
                assert child.process.poll() is None
                time.sleep(0.01)
            status = Path("/proc", str(child.process.pid), "status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = str(os.getuid() or ("0" if "root without" in confinement else NOBODY))
    assert fields["Uid"].split() == [user] * 4
    reading = 1 << 2 if "who may read" in confinement else 0
    sets = {name: int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    assert sets == {"CapInh": 0, "CapPrm": reading, "CapEff": reading, "CapAmb": 0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


AS_NOBODY = """
import os, subprocess, sys, tempfile
from pathlib import Path
from nanochat.tools import execution
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
sys.executable, tempfile.tempdir = sys.argv[1], sys.argv[2]
print(execution.isolation())
result = execution.run_python(Path(sys.argv[3]).read_text(), timeout_s=20)
print(result.stdout, result.stderr)
hidden = "import os; os.mkdir('a', 0o300); open('a/b', 'w').close(); os.mkdir('c', 0)"
print(execution.run_python(hidden).ok, os.listdir(tempfile.tempdir))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run as an ordinary user")
def test_an_ordinary_users_other_files_are_out_of_reach_too():
    python = "/usr/bin/python3"  # nobody may be unable to run the tests' own
    try:
        subprocess.run(
            [python, "-c", "assert __import__('sys').version_info >= (3, 11)"], check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no Python for everyone as {python}")
    with execution._folder() as folder:
        (folder / "tmp").mkdir()
        victim, attempts = folder / "victim", folder / "attempts"
        victim.write_text("secret")
        attempts.write_text(OUTSIDE.format(victim=str(victim), shared=0))
        for path in (folder, folder / "tmp", victim):
            os.chown(path, NOBODY, NOBODY)
        attempts.chmod(0o644)
        before = victim.stat().st_mode, victim.stat().st_mtime_ns
        command = [sys.executable, "-c", AS_NOBODY, python, str(folder / "tmp"), str(attempts)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert victim.read_text() == "secret"
        assert (victim.stat().st_mode, victim.stat().st_mtime_ns) == before
    lines = done.stdout.split("\n")
    assert f"user {NOBODY}" in lines[0], done.stderr
    assert lines[1:] == [f"{OUTSIDE.count('lambda: ')} tried", " ", "False []", ""]


# --- limits


def test_an_endless_program_is_ended_at_the_limit():
    result = execution.run_python("print('started', flush=True)\nwhile True: pass", timeout_s=0.7)
    assert result.timed_out
    assert not result.ok
    assert result.stdout == "started\n"


def test_output_is_cut_and_cannot_fill_the_disk():
    result = execution.run_python("while True: print('x' * 10_000)", timeout_s=10)
    assert not result.ok
    assert "File too large" in result.stderr
    assert len(result.stdout) == execution.OUTPUT_CHARS


@pytest.mark.parametrize(
    "program",
    [
        "while True: open(str(n := n + 1), 'w').write('x' * 1_000_000)",
        "while True: open(str(n := n + 1), 'w')",
        "while True: os.mkdir('d'), os.chdir('d')",
        "os.mkdir('a')\nwhile True:\n"
        "  open(f'a/{(n := n + 1)}', 'w'), os.rename('a', 'b'), os.rename('b', 'a')",
    ],
)
def test_a_program_that_fills_the_disk_is_ended_and_leaves_nothing(program, temporary):
    result = execution.run_python(f"import os\nn = 0\n{program}", timeout_s=60)
    assert not result.ok
    assert execution.OVER_LIMIT in result.stderr
    assert not result.timed_out
    assert list(temporary.iterdir()) == []


def test_what_was_over_the_limit_at_the_end_does_not_pass_either():
    program = "open('a', 'w'), os.mkdir('b'), os.chdir('b'), os.mkdir('c')"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "COUNT_S", 1000)  # only the last count, after its end
        patch.setattr(execution, "FOLDER_ENTRIES", 3)
        assert execution.run_python(f"import os\n{program}").ok
        patch.setattr(execution, "FOLDER_ENTRIES", 2)
        result = execution.run_python(f"import os\n{program}")
    assert (result.ok, result.exit_code) == (False, 0)


def test_a_folder_that_cannot_be_counted_is_over_the_limit(tmp_path):
    assert execution._fits(tmp_path)
    assert not execution._fits(tmp_path / "always renamed meanwhile")


def test_a_folder_is_removed_whatever_is_in_it(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "inner" / "file").write_text("x")
    (folder / "closed" / "inner").chmod(0)
    (folder / "closed").chmod(0)
    Path(os.fsdecode(bytes(folder) + b"/\xff\n*")).mkdir()
    (folder / ("n" * 255)).mkdir()
    (folder / "link").symlink_to(outside)
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    for _ in range(2200):  # deeper than a path is long, or a stack of calls
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(here)
    os.close(here)
    try:
        execution.remove_tree(folder)
        assert not folder.exists()
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)  # pytest cannot remove it either
    assert (outside / "kept").read_text() == "x"


STUBBORN = """
import ctypes, os, signal, sys, threading, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
libc = ctypes.CDLL(None)
libc.prctl(1, 0, 0, 0, 0), libc.alarm(0), libc.setsid()
for timer in range(9): libc.timer_delete(timer)
threading.Thread(target=time.sleep, args=(1000,)).start()
open("pid", "w").write(str(os.getpid()) + " ")
time.sleep(1000)
"""


def test_the_kernel_ends_a_program_whose_parent_does_not():
    with execution._folder() as folder:
        job = execution._job("program", STUBBORN, folder, 100, execution.MEMORY_BYTES)
        with execution._started(job | {"wall_s": 0.5}) as child:
            assert child.process.wait(60) == -signal.SIGKILL
        assert (folder / "pid").exists(), child.stderr


def test_a_program_ends_with_its_parent(temporary):
    parent = "import sys; from nanochat.tools.execution import run_python as run; "
    parent += f"run({STUBBORN!r}, timeout_s=1000)"
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", parent], env=environment) as process:
        while not (started := [p for p in temporary.glob("*/pid") if " " in p.read_text()]):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    child = Path("/proc", started[0].read_text().strip(), "stat")
    while is_running(child):  # pytest-timeout ends what hangs
        time.sleep(0.01)


def is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_neither_the_environment_nor_open_files_are_passed_on(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    program = """
import os
print(sorted(os.environ), len(os.listdir('.')))
for number in range(3, 2000):
    try: print(number, os.fstat(number))
    except OSError: pass
"""
    result = execution.run_python(program)
    assert result.ok
    assert "SECRET" not in result.stdout
    assert result.stdout.endswith(" 0\n")


# --- the judge

DOUBLE = "def double(x):\n    return 2 * x"
TESTS = "def check(candidate):\n    assert candidate(3) == 6\n    assert double('a') == 'aa'"


def test_a_right_function_passes_and_a_wrong_one_says_what_it_missed():
    assert execution.check_function(DOUBLE, "double", TESTS).ok
    assert execution.check_function("print('out')\n" + DOUBLE, "double", TESTS).stdout == "out\n"
    wrong = execution.check_function("def double(x):\n    return x", "double", TESTS)
    assert not wrong.ok and "AssertionError" in wrong.stderr
    raising = execution.check_function("def double(x):\n    return x['k']", "double", TESTS)
    assert not raising.ok and "TypeError: 'int' object is not subscriptable" in raising.stderr
    absent = execution.check_function("x = 1", "double", TESTS)
    assert not absent.ok and "KeyError: 'double'" in absent.stderr
    assert execution.check_function("while True: pass", "double", TESTS, timeout_s=0.5).timed_out
    broken = execution.check_function(DOUBLE, "double", "def check(:")
    assert not broken.ok and "SyntaxError" in broken.stderr


def write(message: bytes) -> str:
    """A function that writes to whatever it can, again and again."""
    return f"""
import os
def double(x):
    for fd in range(3, 64):
        for _ in range(3):
            try: os.write(fd, {message!r})
            except OSError: break
    os._exit(0)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import sys\ndef double(x): sys.exit(0)",
        "import os\ndef double(x): os.closerange(0, 64)",
        "def double(x): raise AssertionError",
        "def double(x): raise StopIteration",
        "class Same:\n  def __eq__(self, other): return True\ndouble = lambda x: Same()",
        "class Same(int):\n  def __eq__(self, other): return True\ndouble = lambda x: Same(1)",
        "class Same(str):\n  def __eq__(self, other): return True\ndouble = lambda x: Same()",
        "import builtins\nbuiltins.AssertionError = Warning\ndouble = lambda x: None",
        # look for something to compare with, or for tests to pass over, in the frames of callers
        """
import gc, sys
def jump(frame, event, argument):
    if frame.f_code.co_name == "check": frame.f_lineno = 99
    return jump
def double(x):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):
            if name == "check" or callable(value) and "check" in getattr(value, "__name__", ""):
                raise SystemExit(f"found {name}")
        frame.f_trace = jump
        frame = frame.f_back
    sys.settrace(jump)
    assert not any("candidate(" in text for text in gc.get_objects() if isinstance(text, str))
    return x
""",
        write(b"\n"),
        write(b"1\n"),
        write(b'"refused x"\n'),
        write(b'{"refused": "x"}\n'),
        write(b'-refused\n+nobody\n{"finished": true}\n'),
        write(b"[" * 4096 + b"\n"),
        write(b'{"returned": ' + b"[" * 100_000 + b"\n"),
        write(b"\xff\xfe\n"),
        write(b"x" * (2 << 20)),
        write(b'{"returned": 6}\n'),
        write(b'{"returned": {"int": 6}}\n'),
        write(b'{"returned": {"set": [[]]}}\n'),
        write(b'{"returned": {"dict": [1]}}\n'),
        write(b'{"returned": {"int": "' + b"f" * 100_000 + b'"}}\n'),
        write(b'{"raised": "SystemExit", "text": "0"}\n'),
        write(b'{"raised": "KeyboardInterrupt", "text": ""}\n'),
        write(b'{"raised": "UnicodeDecodeError", "text": ""}\n'),
        write(b'{"raised": "print", "text": ""}\n'),
    ],
)
def test_a_wrong_function_fails_whatever_it_does(code):
    result = execution.check_function(code, "double", TESTS, timeout_s=20)
    assert not result.ok
    assert not result.timed_out
    assert "found" not in result.stderr


def test_a_function_that_never_answers_is_timed_out():
    silent = "import time\ndef double(x): time.sleep(1000)"
    assert execution.check_function(silent, "double", TESTS, timeout_s=0.5).timed_out


def test_exceptions_that_tests_expect_reach_them():
    tests = """
def check(candidate):
    for value, kind in ((0, ZeroDivisionError), ("x", TypeError), ([], TypeError)):
        try: candidate(value)
        except kind: continue
        raise AssertionError(value)
"""
    assert execution.check_function("def f(x): return 1 / x", "f", tests).ok


NUMBERS = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
PLAIN = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.text() | st.binary() | st.frozensets(st.integers()),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.tuples(st.integers(), st.booleans()), inner)
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=10,
)


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_plain_data_arrives_as_it_was_sent(value):
    arrived = sandbox.decode(json.loads(json.dumps(sandbox.encode(value))))
    assert arrived == value
    assert type(arrived) is type(value)


def test_types_arrive_as_what_they_are_equal_to():
    values = [
        True,
        1,
        1.0,
        -0.0,
        float("nan"),
        2**20_000,
        "\ud800",
        bytearray(b"x"),
        {1: (1,)},
        set(),
    ]
    arrived = sandbox.decode(json.loads(json.dumps(sandbox.encode(values))))
    assert [type(item) for item in arrived] == [type(item) for item in values]
    assert (arrived[:3], str(arrived[3:5])) == (values[:3], "[-0.0, nan]")
    assert arrived[5:] == values[5:]
    counted = sandbox.decode(sandbox.encode(Counter("aab")))
    assert (counted, type(counted)) == ({"a": 2, "b": 1}, dict)


def test_what_is_not_plain_data_is_equal_to_nothing():
    for value in (object(), iter([]), range(3), len, type, Path("x")):
        arrived = sandbox.decode(sandbox.encode(value))
        assert type(arrived) is object
        assert arrived != value


@pytest.mark.slow  # 164 problems, two processes each
@pytest.mark.skipif(not PROBLEMS.is_dir(), reason="needs HumanEval's published problems")
def test_all_reference_solutions_of_humaneval_pass_and_empty_ones_fail():
    task = HumanEval(source=str(PROBLEMS))
    assert len(task) == 164
    passed = [i for i in range(164) if task.evaluate(i, task[i]["messages"][1]["content"])]
    assert passed == list(range(164))
    assert not any(task.evaluate(i, "    pass\n") for i in range(0, 164, 8))


# --- where it cannot be kept


def test_without_a_part_of_the_sandbox_nothing_runs(monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    program = execution.CHILD.read_text(encoding="utf-8")
    broken = tmp_path / "sandbox.py"
    # system call 999999 stands for a kernel without Landlock
    broken.write_text(program.replace("= 444, 445, 446", "= 999999, 445, 446"), encoding="utf-8")
    monkeypatch.setattr(execution, "CHILD", broken)
    message = r"cannot be confined here \(Landlock: .*leave HumanEval out, or run it on Linux 5.13"
    with pytest.raises(ConfigError, match=message):
        execution.run_python(f"open({str(marker)!r}, 'w')")
    with pytest.raises(ConfigError, match=message):
        execution.check_function(DOUBLE, "double", TESTS)
    execution.isolation.cache_clear()
    with pytest.raises(ConfigError, match=message):
        execution.isolation()
    assert not marker.exists()


def test_an_unknown_platform_is_refused(monkeypatch):
    monkeypatch.setattr(execution.system_calls, "MACHINES", {})
    with pytest.raises(ConfigError, match=f"cannot be confined on {os.uname().machine}; leave"):
        execution.run_python("pass")
    monkeypatch.setattr(execution.sys, "platform", "win32")
    with pytest.raises(ConfigError, match="cannot be confined on win32; leave HumanEval out"):
        execution.run_python("pass")


def test_root_that_cannot_become_nobody_says_so(monkeypatch, tmp_path, caplog):
    program = execution.CHILD.read_text(encoding="utf-8")
    broken = tmp_path / "sandbox.py"
    broken.write_text(program.replace("= _permitted()", "= 0"), encoding="utf-8")
    monkeypatch.setattr(execution, "CHILD", broken)
    execution.isolation.cache_clear()
    level = execution.isolation()
    execution.isolation.cache_clear()
    if os.getuid() == 0:
        assert "root without capabilities, as it may not manage other users" in level
        assert "start as an ordinary user" in caplog.text


def test_the_isolation_level_is_reported(confinement):
    for part in ("seccomp", "Landlock", "nobody" if os.getuid() == 0 else f"user {os.getuid()}"):
        assert part in confinement
