"""Where a planted artefact meets a command, and what is looked at afterwards.

An arena is a folder with everything that an attack could reach: a home, somebody's documents (`victim`), a folder in
which commands are typed (`work`, with the artefact in it), a file that only planted code would make (`canary`), a
secret in the environment and a socket that listens on the loopback. A command is a forked process of its own, with
little memory to spare. `Arena.call` runs one and returns what it did that it must not do.
"""

import hashlib
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired

from support.commands import _enter, server

SPARE = 3 << 30  # bytes of address space that a command may ask for
PEAK = 1 << 20  # KiB by which its resident memory may grow
CPU_SECONDS = 40  # that one process may compute
SECONDS = 150.0  # that one command may take on a busy machine
SECRET = "RECUR_TEST_SECRET"
_SPARSE = 1 << 28
_LOCKS = (".lock", ".locks")  # who holds a folder is no content of it


@dataclass(frozen=True)
class Case:
    """A planted artefact and the commands that open it.

    Attributes:
        name: what is planted.
        plant: makes it in an arena.
        commands: command lines, `recur.` left out, each run on a fresh copy.
        own: paths below `work` that belong to the artefact: a command may write into them.
        quick: whether it represents its class in the default tests.
        check: looks at what a command left and said; returns what is wrong.
        codes: exit codes that are right.
        fails: why the case is known to fail, empty where it must not.
    """

    name: str
    plant: Callable[["Arena"], object]
    commands: Sequence[Sequence[str]]
    own: Sequence[str] = ("r",)
    quick: bool = False
    check: Callable[["Arena", "Done"], Iterable[str]] | None = None
    codes: Sequence[int] = (0, 2)
    fails: str = ""


@dataclass
class Done:
    """A command that has ended.

    Attributes:
        words: its command line.
        code: exit code; negative for a signal.
        out: standard output.
        err: standard error.
        wrong: what it did that it must not do, each as `kind: what`.
    """

    words: list[str]
    code: int
    out: str
    err: str
    wrong: list[str] = field(default_factory=list)


class Listener:
    """A socket on the loopback that counts who calls."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.calls = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                call, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            call.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class Arena:
    """A folder in which commands are run on a planted artefact.

    Args:
        root: an empty folder.
        bases: valid runs and sweeps, made once (`bases.Bases`).
        listener: shared by all arenas of a session.
        cache: token cache shared by all.
    """

    def __init__(self, root: Path, bases: object, listener: Listener, cache: Path) -> None:
        self.root, self.bases, self.listener, self.cache = root, bases, listener, cache
        self.work, self.victim, self.home = root / "work", root / "victim", root / "home"
        self.canary = root / "canary"
        self.secret = secrets.token_hex(16)
        for folder in (self.work, self.victim / "deep", self.victim / "0", self.home, root / "tmp"):
            folder.mkdir(parents=True)
        (self.victim / "letter.txt").write_text("Dear reader,\n")
        (self.victim / "empty").touch()
        (self.victim / "deep" / "photo.bin").write_bytes(bytes(range(256)))
        (self.victim / "0" / "thesis.txt").write_text("the only copy\n")
        (self.victim / "page.html").write_text("<!doctype html><p>somebody's page\n")
        (self.home / ".bashrc").write_text("# mine\n")

    # ------------------------------------------------------------------------------------------------ what is planted

    @property
    def shell(self) -> str:
        """A command that leaves the canary and calls the listener."""
        return f"touch {self.canary}; bash -c 'exec 3<>/dev/tcp/127.0.0.1/{self.listener.port}'"

    @property
    def system(self) -> dict[str, str]:
        """A config that runs it."""
        return {"_target_": "os.system", "command": self.shell}

    def path(self, name: str) -> Path:
        """A path below `work`, whose folder is made."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def copy(self, base: Path, name: str) -> Path:
        """A copy of a valid artefact in `work`."""
        shutil.copytree(base, self.work / name, symlinks=True)
        return self.work / name

    # ------------------------------------------------------------------------------------------------ what comes of it

    def call(self, words: Sequence[str], own: Sequence[str], codes: Sequence[int] = (0, 2)) -> Done:
        """Run a command in `work` and look at what it did."""
        before, calls = self._seen(), self.listener.calls
        code, out, err, grown, asked = self._run([str(word) for word in words])
        done = Done([str(word) for word in words], code, out, err)
        if asked:
            done.wrong.append(f"network: {asked[:200]}")
        if self.canary.exists():
            done.wrong.append("executed: the canary is there")
            self.canary.unlink()
        if self.listener.calls > calls:
            done.wrong.append("network: the listener was called")
        done.wrong += _changes(before, self._seen(), own, refused=code == 2)
        done.wrong += self._leaks(done)
        if code not in codes or "Traceback (most recent call last)" in err:
            last = next(iter(reversed(err.strip().splitlines())), "")
            kind = "accepted" if code == 0 else "time" if code in (-signal.SIGKILL, -signal.SIGXCPU) else "crash"
            done.wrong.append(f"{kind}: exit code {code}: {last[:200]}")
        if re.search(r"weights_only.{0,20}False", out + err):
            done.wrong.append("advice: torch's advice to load what is unsafe")
        if grown > PEAK:
            done.wrong.append(f"memory: {grown >> 10} MiB")
        return done

    def _run(self, words: list[str]) -> tuple[int, str, str, int, str]:
        with tempfile.TemporaryDirectory() as scratch:
            streams = [str(Path(scratch) / name) for name in ("in", "out", "err")]
            record = Path(scratch) / "peak"
            Path(streams[0]).touch()
            surroundings = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "HOME": str(self.home),
                "TMPDIR": str(self.root / "tmp"),
                "RECUR_CACHE": str(self.cache),
                "MPLCONFIGDIR": str(self.cache / "matplotlib"),
                "HF_ENDPOINT": f"http://127.0.0.1:{self.listener.port}",  # for processes that a command starts
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                SECRET: self.secret,
            }
            arguments = (str(record), f"recur.{words[0]}", words[1:], str(self.work), surroundings, streams)
            process = server().Process(target=_confined, args=arguments)
            process.start()
            process.join(SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
                return -signal.SIGKILL, "", str(TimeoutExpired(words, SECONDS)), 0, ""
            out, err = (Path(name).read_bytes().decode("utf-8", "replace") for name in streams[1:])
            grown = int(record.read_text()) if record.is_file() else 0
            network = record.with_suffix(".network")
            asked = network.read_text() if network.is_file() else ""
            return process.exitcode or 0, out, err, grown, asked

    def _seen(self) -> dict[str, str]:
        """Everything in the arena but its temporary folder: path to what is there."""
        seen = {}
        for folder, folders, files in os.walk(self.root):
            if folder == str(self.root):
                folders.remove("tmp")
            for name in (*folders, *files):
                path = Path(folder) / name
                seen[str(path.relative_to(self.root))] = _content(path)
        return seen

    def _leaks(self, done: Done) -> list[str]:
        found = [
            f"secret: in its {name}"
            for name, text in (("output", done.out), ("errors", done.err))
            if self.secret in text
        ]
        for base in (self.root, self.cache):
            for folder, _, files in os.walk(base):
                for name in files:
                    path = Path(folder) / name
                    plain = path.is_file() and not path.is_symlink() and path.stat().st_size <= _SPARSE
                    if plain and self.secret.encode() in path.read_bytes():
                        found.append(f"secret: in {path.relative_to(base)}")
        return found


def _confined(record: str, *arguments: object) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    _watch_network(Path(record).with_suffix(".network"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        _enter(*arguments)  # type: ignore[arg-type]
    finally:
        Path(record).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def _watch_network(record: Path) -> None:
    """Write down whom this process asks for anything; on the loopback the listener counts."""
    local = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else None  # a path is a socket of this machine
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host not in local:
            with record.open("a") as file:
                file.write(f"{event} {host}\n")

    sys.addaudithook(hook)


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "special"
    state = path.stat()
    if state.st_size > _SPARSE:  # with holes: planted, and longer than any reader's life
        return f"{state.st_size} bytes of {state.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changes(before: dict[str, str], after: dict[str, str], own: Sequence[str], refused: bool) -> list[str]:
    mine = [f"work/{name}" for name in own]
    found = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path) or path == "canary":
            continue
        ours = next((name for name in mine if path == name or path.startswith(f"{name}/")), None)
        what = "is new" if path not in before else "is gone" if path not in after else "is changed"
        if ours is None:
            found.append(f"{'outside' if path not in before else 'foreign'}: {path} {what}")
        elif refused and ours in before and not any(part in _LOCKS for part in Path(path).parts):
            found.append(f"refused: {path} {what} by a command that was refused")
    return found
