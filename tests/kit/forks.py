"""Faster child processes: `python -m zoo...` is forked from a process that has already imported everything.

Importing torch takes five seconds, and the tests start a thousand children that need it. Apart from its imports a
forked child is an ordinary process: it has its own pid, streams, environment, folder and exit code.
`install` makes `subprocess.Popen` do so; the fixture `real_processes` undoes that for a test that is about the start of
a process. On other systems than Linux every child is started as usual.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

#: The environment variable with the address of the server; if it is empty or absent, children are not forked.
ADDRESS = "ZOO_TEST_FORKS"
#: The environment variable with the path of the coverage data; if it is absent, children do not measure coverage.
COVERAGE = "ZOO_TEST_COVERAGE"
#: Variables that Python or a library reads while it starts. A child with another value is not forked.
AT_START = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "COVERAGE_")
#: Modules that are imported once; none that reads its environment at import (as huggingface_hub does).
IMPORTED = (
    *("numpy", "PIL.Image", "onnx", "onnxruntime.quantization", "tokenizers", "safetensors.torch", "pyarrow.parquet"),
    *("torch", "torchvision.transforms.v2", "torch.onnx", "torch.export", "torch._dynamo", "onnxscript"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg", "matplotlib.style"),
    *("yaml", "httpx2", "httpcore2", "filelock", "anyio", "tqdm.auto"),
)
_Popen = subprocess.Popen


def _starting(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(AT_START) and name != "PYTHONPATH"}


#: The values of these variables at `install`.
_own: dict[str, str] = {}
#: The server that this process has to start; its children find a running one.
_server: "Server | None" = None


class Popen(_Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, but `python -m zoo...` is forked from the server, if there is one."""

    _connection: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, *rest: Any) -> None:
        # The order of CPython 3.11 to 3.13.
        pass_fds, cwd, env, _, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[:12]
        new_session = rest[17]
        environment = dict(os.environ if env is None else env)
        words = [str(word) for word in args] if not isinstance(args, str | bytes | os.PathLike) else []
        address = environment.get(ADDRESS)
        if not (address and not (executable or preexec_fn or pass_fds or shell)) or not is_ours(words, environment):
            super()._execute_child(args, executable, preexec_fn, close_fds, *rest)  # type: ignore[misc]
            return
        if _server is not None:
            _server.start()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
            streams = [p2cread if p2cread != -1 else 0, c2pwrite if c2pwrite != -1 else 1, errwrite]
            if streams[2] == -1:
                streams[2] = 2
            request = {
                "words": words[1:],
                "env": environment,
                "cwd": os.fspath(cwd or Path.cwd()),
                "new": new_session,
                "cores": sorted(os.sched_getaffinity(0)),
            }
            body = json.dumps(request).encode()
            socket.send_fds(connection, [len(body).to_bytes(4)], streams)
            connection.sendall(body)
            self.pid = json.loads(_line(connection))
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _internal_poll(self, *rest: Any, **more: Any) -> int | None:
        if self._connection is None:
            found: int | None = super()._internal_poll(*rest, **more)  # type: ignore[misc]
            return found
        with self._waitpid_lock:  # type: ignore[attr-defined]
            self._try_wait(os.WNOHANG)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            found: tuple[int, int] = super()._try_wait(wait_flags)  # type: ignore[misc]
            return found
        if self.returncode is None:
            self._connection.setblocking(not wait_flags & os.WNOHANG)
            try:
                said = _line(self._connection)
            except BlockingIOError:
                return 0, 0
            # The server has ended, and its children with it.
            self.returncode = json.loads(said) if said else -signal.SIGKILL
            self._connection.close()
        return self.pid, (self.returncode << 8 if self.returncode >= 0 else -self.returncode)


def is_ours(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the command is this interpreter with a module of zoo and with the server's start variables."""
    if len(words) < 3 or words[0] != sys.executable or _starting(environment) != _own:
        return False
    folders = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    # A package there would hide the one that the server has imported.
    names = {name.partition(".")[0] for name in IMPORTED}
    hiding = {"sitecustomize.py", *names, *(f"{name}.py" for name in names)}
    if any((Path(folder) / name).exists() for folder in folders for name in hiding):
        return False
    rest = words[2:] if words[1] == "-P" else words[1:]
    return rest[0] == "-m" and rest[1].split(".")[0] in ("zoo", "zoo_cli")


def _line(connection: socket.socket) -> bytes:
    """The next line without its line feed; b"" at the end of the connection."""
    found = b""
    while (byte := connection.recv(1)) not in (b"\n", b""):
        found += byte
    return found


def install(server: "Server | None" = None) -> None:
    """Fork the children of this process, and theirs, from now on; `server` is started with the first of them."""
    global _server
    _server = server
    _own.update(_starting(os.environ))
    subprocess.Popen = Popen  # type: ignore[misc]


class Server:
    """The process that children are forked from; it ends with this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zoo-forks-")
        self.address = str(Path(self._folder.name) / "socket")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the server, unless it runs already, and wait until it can fork."""
        with self._lock:
            if self._process is None:
                command = [sys.executable, "-m", "tests.kit.forks", self.address]
                root = Path(__file__).resolve().parents[2]
                # In its own session, so that signals to a test's process group do not reach the server.
                self._process = _Popen(
                    command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
                assert self._process.stdout is not None
                assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End the server and every child that still runs."""
        if self._process is not None:
            # Leaving the block closes the pipes and waits.
            with self._process:
                pass
        self._folder.cleanup()


def serve(address: str) -> None:
    """Import everything, then fork a child for every connection until stdin ends."""
    import gc
    import weakref
    from importlib import import_module

    from tests.kit import exporter, plots
    from zoo.runtime.device import onnxruntime

    onnxruntime()
    # huggingface_hub reads its environment at import: only the children import it and the modules that need it.
    sys.modules["huggingface_hub"] = None  # type: ignore[assignment]
    for name in IMPORTED:
        import_module(name)
    import zoo_cli.app

    import zoo

    for package in (zoo, zoo_cli):
        for path in package.__path__:
            for file in Path(path).rglob("*.py"):
                parts = file.relative_to(path).with_suffix("").parts
                name = ".".join([package.__name__, *parts]).removesuffix(".__init__")
                if parts[-1] != "__main__" and parts[0] != "templates":
                    with suppress(ImportError):
                        import_module(name)
    del sys.modules["huggingface_hub"]
    exporter.warm_up()
    plots.warm_up()
    # Children skip the finalizers that they inherit: those of torch alone take 0.02 s.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    install()
    gc.collect()
    gc.freeze()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for each in (0, wake, listener):
            selector.register(each, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if 0 in ready and not os.read(0, 1):
                break
            if wake in ready:
                os.read(wake, 1024)
                _reap(running)
            if listener in ready:
                connection, _ = listener.accept()
                _start(connection, running)
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(running: dict[int, socket.socket]) -> None:
    while running:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with running.pop(pid) as connection, suppress(OSError):
                connection.send(b"%d\n" % os.waitstatus_to_exitcode(status))


def _start(connection: socket.socket, running: dict[int, socket.socket]) -> None:
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    body, length = b"", int.from_bytes(head)
    while len(body) < length:
        body += connection.recv(length - len(body))
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        running[pid] = connection
        return
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        request = json.loads(body)
        if request.pop("new"):
            os.setsid()
        os.sched_setaffinity(0, request.pop("cores"))
        # The parent may kill the session as soon as it knows the pid.
        connection.send(b"%d\n" % os.getpid())
        os.closerange(3, max(256, *streams) + 1)
        _become(**request)
    finally:
        os._exit(70)


def _become(words: list[str], env: dict[str, str], cwd: str) -> None:
    """Run `python *words` in this process; does not return."""
    import atexit
    import runpy
    import traceback
    import warnings

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        for number, mode, buffering, old in (
            (0, "r", -1, sys.stdin), (1, "w", -1, sys.stdout), (2, "w", 1, sys.stderr),
        )
    )  # fmt: skip
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    is_safe = words[0] == "-P"
    _, module, *arguments = words[1:] if is_safe else words
    # The first path of the server is the checkout; that of a child with -m is its working folder.
    sys.path[0:1] = [*([] if is_safe else [cwd]), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [module, *arguments]
    # runpy warns because the server has already imported the module.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    code = 0
    if COVERAGE in env:
        _cover(env[COVERAGE])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _cover(path: str) -> None:
    """Measure coverage in this process; the data are saved before each message to the parent and at the end."""
    import atexit
    from collections.abc import Sequence

    from coverage import Coverage

    from zoo.system import process

    root = Path(path).parent
    coverage = Coverage(
        data_file=path, data_suffix=True, config_file=str(root / "pyproject.toml"), source=[str(root / "zoo")]
    )
    coverage.start()
    atexit.register(coverage.save)
    send = process.Parent.send

    def save_and_send(self: process.Parent, data: object, blobs: Sequence[process.Blob] = ()) -> None:
        coverage.save()
        send(self, data, blobs)

    process.Parent.send = save_and_send  # type: ignore[method-assign]


if __name__ == "__main__":
    # The server's state lies in the imported module, not in __main__.
    from tests.kit import forks

    forks.serve(sys.argv[1])
