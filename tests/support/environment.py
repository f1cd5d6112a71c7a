"""A fresh virtual environment that has what this one has, without installing it all again."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


class Environment:
    """An environment whose own packages come before those of the environment that runs the tests.

    Args:
        folder: where to make it.
        source: a folder of packages besides, such as this project's `src`; None for none.
    """

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        paths = [*([str(source)] if source else []), sysconfig.get_paths()["purelib"]]
        (site / "shared.pth").write_text("\n".join(paths) + "\n")

    def install(self, *words: str) -> None:
        """Install packages into it, without what they depend on: that is there."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q", "--no-deps", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(
        self, *words: object, cwd: Path, timeout: float = 400, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run one of its programs, or a module with `-m`, in an environment that knows nothing of this checkout."""
        import os

        surroundings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RECUR_TRUST")}
        texts = [str(word) for word in words]
        program = [str(self.python), *texts] if texts[0] == "-m" else [str(self.bin / texts[0]), *texts[1:]]
        return subprocess.run(
            program,
            cwd=cwd,
            env={**surroundings, **variables},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
