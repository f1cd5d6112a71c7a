"""The code that a sweep's jobs run: as it stood when the sweep began, whatever is edited while it runs.

    CACHE/code/<sha256>/     the snapshot: src/recur, src/hydra_plugins, conf, packages of one's own; written once
    SWEEP/.code/code.json    where each part came from, its commit, the snapshot's sha256
    SWEEP/.code/changes.diff what differed from the commits
    SWEEP/.code/source.zip   the same files, for machines that do not share the cache

Jobs find the snapshot first on `PYTHONPATH`, with what Python and numba have compiled of it. Copied are this package,
its configs, the YAML files of `--config-dir` and `--config-path`, and the packages that the user trusts
(`recur.runs.trust`) where they lie in a work tree and are not installed; what `hydra.searchpath` names is read where it
is.
`hydra.launcher.snapshot=false` leaves it out: each job then runs the code that it finds when it starts.

Sweeps are shared, and a stranger's must not bring code along. So a resumed sweep runs a snapshot from this user's own
cache, which only his own sweeps write, or the present code where it is the same, and otherwise is refused.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sysconfig
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import recur
from recur.config.compose import conf_dir
from recur.data.cache import cache_folder
from recur.errors import UserError, reason
from recur.runs.metrics import COMMIT, describe_commit
from recur.runs.trust import trusted_packages

FOLDER, ARCHIVE = ".code", "source.zip"
FLAGS = ("--config-dir", "--config-path")  # whose folders are copied
_LEFT_OUT = re.compile(r"__pycache__|\..*|.*\.(py[co]|nb[ci])")
_LARGEST = 200 * 2**20  # bytes
_OFF = "hydra.launcher.snapshot=false leaves it out"


@dataclass(frozen=True)
class Part:
    """A folder or file that is copied.

    Attributes:
        source: where it is.
        target: its place in the snapshot.
        pattern: of the files, all others are left out.
    """

    source: Path
    target: str
    pattern: str = "*"

    def files(self) -> Iterator[tuple[str, Path]]:
        """Each file's place in the snapshot, and where it is."""
        if self.source.is_file():
            yield self.target, self.source
            return
        for folder, inner, names in os.walk(self.source):
            inner[:] = sorted(name for name in inner if not _LEFT_OUT.fullmatch(name))
            for name in sorted(names):
                path = Path(folder) / name
                if not _LEFT_OUT.fullmatch(name) and path.match(self.pattern) and path.is_file():
                    yield f"{self.target}/{path.relative_to(self.source).as_posix()}", path


@dataclass(frozen=True)
class Code:
    """A snapshot.

    Attributes:
        sha256: of all files, by name and content; names its folder.
        commit: of this package, as `git describe` has it; None where it lies in no work tree.
        archive: the sweep's copy, from which another machine makes the folder.
    """

    sha256: str
    commit: str | None
    archive: Path

    @property
    def folder(self) -> Path:
        """Where it is on this machine."""
        return _root() / self.sha256

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Variables by which a process imports from the snapshot; made of the archive first where it is missing.

        Raises:
            UserError: it is missing, and the archive is not the sweep's.
        """
        if not self.folder.is_dir():
            _write(_unpacked(self.archive, self.sha256), self.sha256)
        # The working folder, where Python looks first otherwise, comes last: it may hold the code that has changed.
        here = [] if inherited.get("PYTHONSAFEPATH") else [os.getcwd()]
        paths = [str(self.folder / "src"), *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep)), *here]
        commit = {COMMIT: self.commit} if self.commit else {}
        return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", **commit}

    def flags(self, flags: Sequence[str]) -> list[str]:
        """A command's flags, with the folders of configs as they were."""
        kept = {flag: self.folder / flag.lstrip("-") for flag in FLAGS}
        # A sweep of an earlier version kept no `--config-path`.
        own = {flag: str(folder) for flag, folder in kept.items() if folder.is_dir()}
        return [own.get(before, flag) for before, flag in zip(["", *flags], flags, strict=False)]

    def summary(self) -> dict[str, Any]:
        """What the sweep's journal says of it."""
        return {"sha256": self.sha256, "commit": self.commit}


def take(sweep: Path, config_dirs: Mapping[str, Path] | None = None) -> Code:
    """Copy the code as it stands into the cache, and describe it in the sweep's folder.

    Args:
        sweep: the sweep's folder.
        config_dirs: what `--config-dir` and `--config-path` name, by `config-dir` and `config-path`.

    Raises:
        UserError: there is too much of it.
    """
    parts = _parts(config_dirs)
    files = _read(parts)
    code = Code(_hash(files), describe_commit(), sweep.absolute() / FOLDER / ARCHIVE)
    _write(files, code.sha256, compiled={part.target: part.source for part in parts if part.source.is_dir()})
    inner = sweep / FOLDER
    inner.mkdir(parents=True, exist_ok=True)
    sources = [
        {
            "to": part.target,
            "from": str(part.source),
            "commit": _commit_of(part.source),
            "changed": _differs(part.source),
        }
        for part in parts
    ]
    record = {**code.summary(), "files": len(files), "sources": sources}
    (inner / "code.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    changes = "".join(_differences(part.source) for part in parts)
    (inner / "changes.diff").write_text(changes, encoding="utf-8", errors="replace")
    (inner / ARCHIVE).write_bytes(_packed(files))
    return code


def of_sweep(record: Any, sweep: Path, config_dirs: Mapping[str, Path] | None = None) -> Code | None:
    """The snapshot of a sweep that is resumed.

    Args:
        record: what its journal says, None where it began without one.
        sweep: its folder.
        config_dirs: what `--config-dir` and `--config-path` name, by `config-dir` and `config-path`.

    Raises:
        UserError: the code is not on this machine.
    """
    if record is None:
        return None
    sha256, commit = (record.get("sha256"), record.get("commit")) if isinstance(record, Mapping) else (None, None)
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(str(sweep), rule="is damaged: its journal names no snapshot", remedy=_OFF)
    code = Code(sha256, commit if isinstance(commit, str) else None, sweep.absolute() / FOLDER / ARCHIVE)
    if _is_whole(code.folder, sha256):
        return code
    present = _read(_parts(config_dirs))
    if _hash(present) == sha256:
        _write(present, sha256)
        return code
    raise UserError(
        f"resume={sweep}",
        rule=f"ran code that no sweep has run on this machine (snapshot {sha256[:12]}, commit {code.commit})",
        remedy=f"look at {sweep / FOLDER}, then go on with the present code: hydra.launcher.snapshot=false",
    )


# ------------------------------------------------------------------------------------------------------- what is copied
def _parts(config_dirs: Mapping[str, Path] | None) -> list[Part]:
    """This package, its plugins and configs, typed folders of configs, and the trusted packages of work trees."""
    package = Path(recur.__file__).resolve().parent
    parts = [Part(package, "src/recur")]
    plugins = importlib.util.find_spec("hydra_plugins.recur_sweeps")
    if plugins is not None and plugins.origin:
        parts.append(Part(Path(plugins.origin).resolve().parent, "src/hydra_plugins/recur_sweeps"))
    if not conf_dir().resolve().is_relative_to(package):
        parts.append(Part(conf_dir().resolve(), "conf"))
    for name in sorted({name.partition(".")[0] for name in trusted_packages()} - {"recur", "hydra_plugins"}):
        spec = importlib.util.find_spec(name)
        where = None if spec is None else next(iter(spec.submodule_search_locations or ()), spec.origin)
        if where is not None and not _installed(Path(where)):
            path = Path(where).resolve()
            parts.append(Part(path, f"src/{name}" if path.is_dir() else f"src/{path.name}"))
    return [*parts, *(Part(folder, name, "*.yaml") for name, folder in (config_dirs or {}).items())]


def _installed(path: Path) -> bool:
    """Whether a package was installed, and so is not what anybody edits."""
    places = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")] + [site.getusersitepackages()]
    return any(path.resolve().is_relative_to(Path(place).resolve()) for place in places if place)


def _read(parts: Sequence[Part]) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of each file, by its place in the snapshot.

    Raises:
        UserError: there is too much of it.
    """
    files, size = {}, 0
    for part in parts:
        for name, path in part.files():
            status = path.stat()
            size += status.st_size
            if size > _LARGEST:
                rule = f"is part of a snapshot of the sweep's code that would have more than {_LARGEST >> 20} MiB"
                raise UserError(str(part.source), rule=rule, remedy=_OFF)
            files[name.lstrip("/")] = (path.read_bytes(), status.st_mtime_ns)
    return files


def _hash(files: Mapping[str, tuple[bytes, int]]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{hashlib.sha256(files[name][0]).hexdigest()} {name}\n".encode())
    return whole.hexdigest()


def _is_whole(folder: Path, sha256: str) -> bool:
    """Whether a folder holds this snapshot: no file of it was edited, deleted or added."""
    try:
        return folder.is_dir() and _hash(_read([Part(folder, "")])) == sha256
    except (OSError, UserError):  # a file cannot be read, or there is too much of it
        return False


def _root() -> Path:
    return cache_folder() / "code"


def _write(files: Mapping[str, tuple[bytes, int]], sha256: str, compiled: Mapping[str, Path] | None = None) -> None:
    """Write a snapshot, whole or not at all; one that is there is left as it is, unless it is damaged.

    What Python and numba have compiled is copied too. Both know the source by its time of change and size, which stay:
    without it the first job would compile for seconds.
    """
    place = _root() / sha256
    if _is_whole(place, sha256):
        return
    there = place.is_dir()
    draft, damaged = (place.with_name(f".{sha256[:12]}.{uuid.uuid4().hex}") for _ in range(2))
    try:
        for name, (content, changed) in files.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(changed, changed))
            path.chmod(0o444)  # nobody should edit it by mistake
        for target, source in (compiled or {}).items():
            for cache in source.rglob("__pycache__"):
                where = draft / target / cache.relative_to(source)
                if where.parent.is_dir():
                    with contextlib.suppress(OSError):  # a file that another process is writing; it only saves time
                        shutil.copytree(cache, where, dirs_exist_ok=True)
        if there:
            with contextlib.suppress(FileNotFoundError):  # another sweep has done the same
                place.rename(damaged)
        draft.rename(place)
    except OSError as error:
        if not place.is_dir():  # else another sweep was quicker
            rule = f"must be a folder that can be written ({reason(error)})"
            raise UserError("RECUR_CACHE", str(cache_folder()), rule, _OFF) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------- to other machines
def _packed(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (content, _) in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 1)
    return buffer.getvalue()


def _unpacked(path: Path, sha256: str) -> dict[str, tuple[bytes, int]]:
    """The files of an archive, once they are known to be those of this snapshot.

    Raises:
        UserError: they are not.
    """
    damaged = UserError(str(path), rule="is not the code with which the sweep began", remedy=_OFF)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _LARGEST:
                raise damaged
            files = {entry.filename: (archive.read(entry), 0) for entry in entries}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise UserError(str(path), rule=f"cannot be read ({error})", remedy=_OFF) from None
    outside = any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files)
    if outside or _hash(files) != sha256:
        raise damaged
    return files


# ------------------------------------------------------------------------------------------------------------------ git
def _git(place: Path, *words: str) -> str | None:
    """What git says of a folder or file; None where it is in no work tree."""
    folder = place if place.is_dir() else place.parent
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _commit_of(place: Path) -> str | None:
    """The commit of a folder or file; None where git does not keep it, as in a `.venv` within a project."""
    known = _git(place, "ls-files", "--", _named(place))
    return (_git(place, "rev-parse", "HEAD") or "").strip() or None if known else None


def _differs(place: Path) -> bool:
    """Whether a folder that git keeps has other files than its commit, or files that no commit has."""
    return _commit_of(place) is not None and bool(_git(place, "status", "--porcelain", "--", _named(place)))


def _differences(place: Path) -> str:
    """What git shows of a place that differs from its commit."""
    return _git(place, "diff", "HEAD", "--", _named(place)) or ""


def _named(place: Path) -> str:
    """What git calls a place in the folder where it is asked."""
    return "." if place.is_dir() else place.name
