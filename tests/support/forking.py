"""Commands as forks of one process that has done their imports: what a test of the whole command need not wait for.

``spare run`` and its like import KFP, MLflow, torch and diffusers, ten seconds on a slow machine, and many tests start
dozens of them. :func:`popen` starts ``python -m MODULE …`` as a fork of a server that has all that imported, one for
all processes of a test run; it imports when it is first asked. What is started is a process of its own, with its own
output, environment, folder, children and exit code, and dies by signals as any other; and so is each ``python -m`` that
it starts itself.

What imports do at a command's start is not tested this way: every such module has tests that start a real Python too.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
FORKED = ("spare_core", "pipelines", "serving", "tests", "mlflow", "moto")
"""Packages whose modules are run as forks: ours, and those of the servers that tests start. Not uvicorn, in which
MLflow's server runs its app: that is started after the database was opened, which no fork may share."""
REAL = ("spare_core.takedown.alone",)
"""For the same reason: a task starts it, whose services it has asked before."""
ADDRESS = "SPARE_TESTS_FORKS"
_START, _STAY = b"+", b"."
IMPORTED = (
    "spare_core.cli.root", "spare_core.takedown.tasks", "spare_core.runs.stages", "spare_core.runs.compose",
    "spare_core.evaluation.html", "spare_core.registry.registering", "mlflow", "mlflow.diffusers", "peft", "kfp.local",
    "pipelines.local", "pipelines.warm", "boto3", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store", "mlflow.cli", "mlflow.server",
)  # fmt: skip


class Command:
    """A started command; used as :class:`subprocess.Popen` is."""

    def __init__(self, args: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._status = b""
        (out, out_end), (err, err_end), (self._status_fd, status_end), (request, request_end) = (
            os.pipe() for _ in "abcd"
        )
        with _connected() as connection:
            socket.send_fds(connection, [_START], [request, out_end, err_end, status_end])
        for fd in (request, out_end, err_end, status_end):
            os.close(fd)
        asked = {"args": self.args, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        with os.fdopen(request_end, "w") as file:
            json.dump(asked, file)
        self.stdout: IO[str] = os.fdopen(out, errors="replace")
        self.stderr: IO[str] = os.fdopen(err, errors="replace")
        self.pid = self._word(120)

    def _word(self, timeout: float | None) -> int:
        """The next number that the server says of the command: its process id, then its exit code."""
        while b"\n" not in self._status:
            if not select.select([self._status_fd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            read = os.read(self._status_fd, 64)
            assert read, "the process that forks commands has died"
            self._status += read
        word, _, self._status = self._status.partition(b"\n")
        return int(word)

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as soon as it has ended."""
        if self.returncode is None:
            self.returncode = self._word(timeout)
            os.close(self._status_fd)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it still writes, once it has ended."""
        texts = ["", ""]

        def read(place: int, stream: IO[str]) -> None:
            texts[place] = stream.read()

        readers = [threading.Thread(target=read, args=pair) for pair in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        self.send_signal(signal.SIGTERM)


def popen(args: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Command:
    """Start ``[sys.executable, …, "-m", MODULE, …]``."""
    assert _module(args), f"not a module that is forked: {args}"
    return Command(args, cwd, env)


def run(
    args: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """The same to its end."""
    process = popen(args, cwd, env)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _module(args: Any) -> tuple[str, list[str]] | None:
    """Module and arguments of a command that runs one of these with this Python; None for any other."""
    if isinstance(args, str) or len(args) < 3 or args[0] != sys.executable:
        return None
    rest = [str(word) for word in args[1:]]
    while rest and rest[0] in ("-P", "-u", "-W"):
        del rest[: 2 if rest[0] == "-W" else 1]
    ours = len(rest) > 1 and rest[0] == "-m" and rest[1].partition(".")[0] in FORKED and rest[1] not in REAL
    return (rest[1], rest[2:]) if ours else None


@contextlib.contextmanager
def forking_server() -> Iterator[None]:
    """The server, for this process and its children; used by whoever starts a test run."""
    folder = Path(tempfile.mkdtemp(prefix="spare-forks-"))
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        command = [sys.executable, "-m", "tests.support.forking", str(listener.fileno())]
        server = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()], stdin=subprocess.PIPE)
    os.environ[ADDRESS] = address
    try:
        yield
    finally:
        server.communicate()  # it ends at the end of its input
        del os.environ[ADDRESS]
        shutil.rmtree(folder)


def _connected() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[ADDRESS])
    return connection


@contextlib.contextmanager
def until_the_run_ends() -> Iterator[Callable[[], None]]:
    """Yields what returns when the test run is over, or whoever started it has died; the server waits for the block."""
    with _connected() as connection:
        connection.sendall(_STAY)

        def wait() -> None:
            connection.recv(1)

        yield wait


class _Fork(subprocess.Popen):
    """A Popen that forks this process where it has imported what the command runs; no new Python."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int,
                       c2pread: int, c2pwrite: int, errread: int, errwrite: int, *more: Any) -> None:  # fmt: skip
        found = _module(args)
        if found is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,  # type: ignore[misc]
                                   creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
                                   *more)  # fmt: skip
            return
        new_session = bool(more[-2]) if len(more) >= 2 else False
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(found, (p2cread, c2pwrite, errwrite), cwd, env, new_session)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def _become(found: tuple[str, list[str]], streams: tuple[int, int, int], cwd: Any, env: Any, new_session: bool) -> None:
    """In the fork: run the module as a fresh Python would, and never return."""
    code = 1
    try:
        if new_session:
            os.setsid()
        for target, fd in enumerate(streams):
            if fd != -1:
                os.dup2(fd, target)
        os.closerange(3, 1024)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if cwd is not None:
            os.chdir(cwd)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, closefd=False), _text(1), _text(2)
        module, arguments = found
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _text(fd: int) -> IO[str]:
    return os.fdopen(fd, "w", buffering=1, errors="backslashreplace", closefd=False)


def _serve(listener: socket.socket) -> None:
    """Fork a keeper for each command asked for, until the input ends: until whoever started this has ended."""
    staying: list[socket.socket] = []
    if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
        return
    _import_all()
    fds = array.array("i")
    while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
        connection, _ = listener.accept()
        message, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(4 * fds.itemsize))
        if message == _STAY:
            staying.append(connection)
            continue
        received = array.array("i", ancillary[0][2])
        if os.fork() == 0:
            for other in (listener, connection, *staying):
                other.close()
            _keep(*received)
        connection.close()
        for fd in received:
            os.close(fd)
    for connection in staying:
        connection.shutdown(socket.SHUT_WR)
    for connection in staying:
        connection.recv(1)


def _import_all() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    from diffusers import StableDiffusionPipeline  # noqa: F401 imported when it is first asked for

    assert threading.active_count() == 1, "a fork takes one thread along: what the others hold is held for good"
    gc.collect()
    gc.freeze()
    subprocess.Popen = _Fork  # type: ignore[misc]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _keep(request: int, out: int, err: int, status: int) -> None:
    """In a process of its own: start the command, say its process id, wait, say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with os.fdopen(request) as file:
            asked = json.load(file)
        process = _Fork(
            asked["args"], cwd=asked["cwd"], env=asked["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        os.close(out)
        os.close(err)
        os.write(status, f"{process.pid}\n".encode())
        os.write(status, f"{process.wait()}\n".encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    # As tests.support.forking, not as __main__, so that what is forked finds the same module.
    from tests.support import forking

    forking._serve(socket.socket(fileno=int(sys.argv[1])))
