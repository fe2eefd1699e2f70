"""Start runs in a tenth of a second, as forks of a server process that has already imported torch, MONAI and ignite.

``python -m monai.bundle run`` spends 6 to 10 seconds of CPU time on these imports, and a comparison has dozens of runs.
So the first run starts the server, ``python -m common.warm_start``, and each run is a fork of it. The server has the
same interpreter, environment and working folder as the command, and it only imports. A fork is therefore in the state
that ``python -m NAME ...`` reaches after these imports.

Some commands start as ordinary processes instead: on systems other than Linux, on machines with a GPU, commands of
several processes (``torchrun``), programs of other packages, after the server failed, and with ``COMMON_WARM_START=0``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from .checks import drop_untrue_warnings
from .child_process import Child, PlainChild, die_with_parent
from .memory import RUNS_AT_ONCE
from .peak_memory import GPU_RECORD

__all__ = ["SWITCH", "start_child"]

logger = logging.getLogger(__name__)

SWITCH = "COMMON_WARM_START"
"""Environment variable: ``0`` starts each command as an ordinary process."""

IMPORTS = (
    "fire",
    "monai.bundle.scripts",
    "torch._dynamo",  # the first optimiser imports it
    "torch.utils.tensorboard",
    "common.allocator",
    "common.data",
    "common.handlers",
    "common.inferers",
    "common.losses",
    "common.metrics",
    "common.networks",
    "common.optimizers",
    "common.precision",
    "common.transforms",
)
"""Modules that nearly every run of a bundle imports."""

OF_A_RUN = (GPU_RECORD, RUNS_AT_ONCE, "PYTEST_CURRENT_TEST")
"""Environment variables that are read during a run, not at import. They may differ between a fork and the server."""

MOST_DESCRIPTORS = 64


def start_child(
    words: Sequence[str],
    output: int,
    environment: Mapping[str, str],
    descriptors: Sequence[int] = (),
    own_group: bool = True,
) -> Child:
    """Start a command, as a fork of the server if possible. It ends when this process ends.

    Args:
        words: the command.
        output: file descriptor for its output.
        environment: all of its environment variables.
        descriptors: further file descriptors that it inherits.
        own_group: put it into a separate process group, which Ctrl-C in the terminal does not reach. A fork of the
            server always has one.
    """
    if _is_warm(words, environment):
        child = _warm_child(words, output, environment, descriptors)
        if child is not None:
            return child
    return PlainChild(words, output, environment, descriptors, own_group)


def _is_warm(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    if sys.platform != "linux" or environment.get(SWITCH) == "0" or not hasattr(os, "pidfd_open"):
        return False
    if len(words) < 3 or list(words[:2]) != [sys.executable, "-m"]:
        return False
    if words[2] != "monai.bundle" and not words[2].startswith("common."):
        return False
    import torch

    # A CUDA driver in use does not survive a fork, and on a machine with GPUs an import might use it.
    return not torch.cuda.is_available()


class WarmChild:
    """A command that runs as a fork of the server."""

    def __init__(self, server: _Server, pid: int, connection: socket.socket) -> None:
        self.server, self.pid, self.connection = server, pid, connection
        self.lender: int | None = server.process.pid
        self.largest = 0
        self.returncode: int | None = None

    def wait(self, patience: float | None = None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        self.connection.settimeout(patience)
        try:
            status, largest = json.loads(_line(self.connection))
        except TimeoutError:
            return None
        except (OSError, ValueError):  # the server was killed with its children, most likely because memory ran out
            status, largest = signal.SIGKILL, 0
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.connection.close()
        self.server.working -= 1
        self.returncode, self.largest = os.waitstatus_to_exitcode(status), 1024 * largest
        return self.returncode


class _Server:
    """The server, as seen by the process that starts commands.

    Args:
        key: PID of the process that owns it, and its environment and working folder.
    """

    def __init__(self, key: tuple[int, Mapping[str, str], str]) -> None:
        self.key, self.working, self.served = key, 0, False
        self.control, its = socket.socketpair()
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(its.fileno()), str(key[0]), *IMPORTS],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # an import error appears again when the command runs as an ordinary process
                stderr=subprocess.DEVNULL,
                env=key[1],
                cwd=key[2],
                start_new_session=True,
                pass_fds=(its.fileno(),),
            )

    def start(
        self, words: Sequence[str], output: int, extra: Mapping[str, str], descriptors: Sequence[int]
    ) -> WarmChild:
        """Raises:
        OSError, ValueError: the server has ended.
        """
        ours, its = socket.socketpair()
        try:
            with its:
                socket.send_fds(self.control, [b"+"], [its.fileno(), output, *descriptors])
            ours.sendall(json.dumps([list(words), dict(extra)]).encode() + b"\n")
            child = WarmChild(self, json.loads(_line(ours)), ours)
        except BaseException:
            ours.close()
            raise
        self.working += 1
        self.served = True
        return child

    def close(self) -> None:
        self.control.close()
        if self.key[0] == os.getpid():
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_server: _Server | None = None
_failed: list[tuple[int, Mapping[str, str], str]] = []  # keys of servers that failed to start


def _warm_child(
    words: Sequence[str], output: int, environment: Mapping[str, str], descriptors: Sequence[int]
) -> WarmChild | None:
    """Start the command on the server; None if this environment has no server."""
    shared = {name: value for name, value in environment.items() if name not in OF_A_RUN}
    extra = {name: value for name, value in environment.items() if name in OF_A_RUN}
    key = os.getpid(), shared, os.getcwd()
    global _server
    with _lock:
        if key in _failed:
            return None
        if _server is not None and _server.key != key:
            if _server.working and _server.key[0] == key[0]:
                return None  # closing it would end the commands that it runs
            _close()
        if _server is None:
            _server = _Server(key)
        try:
            return _server.start(words, output, extra, descriptors)
        except (OSError, ValueError):
            if not _server.served:
                _failed.append(key)
                logger.warning("The server of warm starts did not start: each run imports MONAI for itself.")
            _close()
            return None
        except BaseException:  # interrupted while the server imports: nobody would wait for the command
            _close()
            raise


@atexit.register
def _close() -> None:
    global _server
    if _server is not None:
        _server.close()
        _server = None


def _line(connection: socket.socket) -> bytes:
    """Read the next line, which is short; empty if the other side has closed."""
    found = b""
    while not found.endswith(b"\n"):
        letter = connection.recv(1)
        if not letter:
            return b""
        found += letter
    return found


def _serve(control: socket.socket, parent: int) -> tuple[socket.socket, int, list[int]]:
    """Fork for each message. Returns only in the forks: connection, descriptor of the output, inherited descriptors."""
    children: dict[int, tuple[int, socket.socket]] = {}  # descriptor of a child -> its PID and connection
    poll, own = select.poll(), os.getpid()
    poll.register(control, select.POLLIN)
    while os.getppid() == parent:
        for ready, _ in poll.poll(1000):
            if ready in children:
                poll.unregister(ready)
                os.close(ready)
                pid, connection = children.pop(ready)
                _, status, usage = os.wait4(pid, 0)
                with connection, suppress(OSError):
                    connection.sendall(b"%s\n" % json.dumps([status, usage.ru_maxrss]).encode())
                continue
            message, given, _, _ = socket.recv_fds(control, 1, MOST_DESCRIPTORS)
            if not message:
                os._exit(0)
            connection = socket.socket(fileno=given[0])
            pid = os.fork()
            if not pid:
                if die_with_parent:
                    die_with_parent()
                if os.getppid() != own:
                    os._exit(1)
                os.setpgid(0, 0)
                control.close()
                for descriptor, (_, other) in children.items():
                    os.close(descriptor)
                    other.close()
                return connection, given[1], given[2:]
            with suppress(OSError):  # the child may have done so itself
                os.setpgid(pid, pid)
            with suppress(OSError):
                connection.sendall(b"%d\n" % pid)
            for descriptor in given[1:]:
                os.close(descriptor)
            descriptor = os.pidfd_open(pid)
            children[descriptor] = pid, connection
            poll.register(descriptor, select.POLLIN)
    os._exit(0)


def _main() -> None:
    """Run the server: import the modules, then run each command in a fork."""
    import numpy as np

    control, parent, imports = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]
    for name in imports:
        importlib.import_module(name)
    if threading.active_count() > 1:
        sys.exit("A package started a thread when it was imported, which a fork would not have.")
    drop_untrue_warnings()
    generators = [one for one in gc.get_objects() if type(one) is np.random.RandomState]
    if "torch" in sys.modules:
        generators.append(sys.modules["torch"].default_generator)
    gc.collect()
    gc.freeze()  # otherwise garbage collection would copy memory pages that the forks share
    connection, output, _ = _serve(control, parent)

    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    with connection, connection.makefile("rb") as lines:
        words, extra = json.loads(lines.readline())
    os.environ.update(extra)
    for generator in generators:  # without a seed, they must differ between processes
        generator.seed()
    sys.argv, sys.orig_argv = words[2:], words
    runpy.run_module(words[2], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
