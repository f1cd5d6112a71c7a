"""Checkpoint files: whole or refused, the one before kept, what was there before intact when the disk is full."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import EASY
from recur.runs import checkpoint as checkpoints
from recur.runs.run import FORMAT, load_checkpoint
from support.commands import run_command
from support.torture import written_until

CONTENT = {"recur": {"format": FORMAT}, "state_dict": {"w": torch.arange(300.0)}, "note": "x" * 40}
SHORT = [
    *EASY,
    "data.synthetic.train_size=60",
    "data.synthetic.val_size=20",
    "data.synthetic.test_size=20",
    "trainer.max_epochs=2",
]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.write(CONTENT, path)
    return path


def test_a_sealed_file_is_an_ordinary_archive(saved):
    assert checkpoints.check(saved)
    assert torch.equal(torch.load(saved, weights_only=True)["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert torch.equal(torch.load(saved, weights_only=True, mmap=True)["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert zipfile.ZipFile(saved).comment.startswith(b"recur sha256 ")
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_torch_alone_would_read_a_flipped_bit_and_the_seal_does_not(saved):
    """Why there is a seal."""
    data = bytearray(saved.read_bytes())
    place = data.find(torch.arange(300.0).numpy().tobytes()) + 4 * 200
    data[place] ^= 1
    saved.write_bytes(data)
    assert torch.load(saved, weights_only=True)["state_dict"]["w"][200] != 200
    with pytest.raises(ValueError, match="do not match their sha256"):
        load_checkpoint(saved)


def test_a_checkpoint_of_before_or_from_elsewhere_still_opens(tmp_path):
    torch.save(CONTENT, tmp_path / "plain.ckpt")
    assert not checkpoints.check(tmp_path / "plain.ckpt")
    assert load_checkpoint(tmp_path / "plain.ckpt")["note"] == CONTENT["note"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_byte_and_no_cut_is_read(tmp_path_factory, data):
    """Bytes changed anywhere, the seal included, several at once; or the file cut off anywhere."""
    folder = tmp_path_factory.getbasetemp() / "flips"
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.ckpt"
    if not whole.exists():
        checkpoints.write(CONTENT, whole)
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        places = st.one_of(st.integers(0, len(content) - 1), st.integers(len(content) - 100, len(content) - 1))
        for place in data.draw(st.sets(places, min_size=1, max_size=5)):
            content[place] ^= data.draw(st.integers(1, 255))
    (folder / "last.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        load_checkpoint(folder / "last.ckpt")


def test_the_one_before_is_kept_and_used_with_a_word(tmp_path):
    folder = tmp_path / "checkpoints"
    last = folder / checkpoints.LAST
    for number in range(3):
        checkpoints.write({**CONTENT, "number": number}, last, keep=checkpoints.PREVIOUS)
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "last.previous.ckpt"}
    assert load_checkpoint(folder / "last.previous.ckpt")["number"] == 1
    assert checkpoints.to_resume(tmp_path) == (last, None)
    last.write_bytes(last.read_bytes()[:-200])
    found, said = checkpoints.to_resume(tmp_path)
    assert found.name == "last.previous.ckpt" and "damaged" in said and "last.ckpt" in said
    last.unlink()
    found, said = checkpoints.to_resume(tmp_path)
    assert found.name == "last.previous.ckpt" and "missing" in said
    found.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot resume"):
        checkpoints.to_resume(tmp_path)


@pytest.mark.slow
def test_a_writer_killed_anywhere_leaves_a_whole_checkpoint(tmp_path):
    """Whatever the moment: last.ckpt is the former or the new one, never a part."""
    folder, tally = tmp_path / "checkpoints", tmp_path / "tally"
    assert written_until(folder, 0, tally) == 0
    total = int(tally.read_text())
    draw = random.Random(0)
    for count in [*range(total - 9, total + 1), *draw.sample(range(2, total - 9), 6)]:
        shutil.rmtree(folder)
        assert written_until(folder, count, tally) == -signal.SIGKILL
        if (folder / "last.ckpt").is_file():
            found, said = checkpoints.to_resume(tmp_path)
            assert found.name == "last.ckpt" and said is None and load_checkpoint(found)["number"] in (1, 2)
        else:
            assert count < total / 2  # the first was not finished


# ---------------------------------------------------------------------------------------------------- through the doors


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_named_with_what_to_use_instead(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    best = run / "checkpoints" / "best.ckpt"
    data = bytearray(best.read_bytes())
    data[len(data) // 2] ^= 4
    best.write_bytes(data)
    for words in (["predict", run, "a film"], ["evaluate", run, "--split", "test"]):
        done = run_command(*map(str, words))
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and len(lines) == 1
        assert str(best) in lines[0] and f"use {run}/checkpoints/last.ckpt instead" in lines[0]
    assert run_command("predict", run / "checkpoints" / "last.ckpt", "a film").returncode == 0


@pytest.mark.slow
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    done = run_command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr and "going on from the one before" in done.stderr
    (run / "checkpoints" / "last.previous.ckpt").unlink()
    last.write_bytes(b"PK\x03\x04")
    done = run_command("train", f"resume={run}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot resume" in done.stderr


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in (".lock",)}


@pytest.mark.slow
def test_a_run_folder_in_use_is_left_alone(tmp_path):
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").write_text("kept")
    with (run / ".lock").open("w") as held:
        held.write("process 1 on elsewhere")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        before = everything(run)
        done = run_command("train", *SHORT, f"hydra.run.dir={run}")
        assert done.returncode == 2
        assert done.stderr.splitlines() == [done.stderr.strip()] and "in use by process 1 on elsewhere" in done.stderr
        assert everything(run) == before
    assert run_command("train", *SHORT, f"hydra.run.dir={run}", "trainer.max_epochs=1").returncode == 0  # the lock went


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder(tmp_path):
    """The lock of a real run: the second is refused, the first ends as if nothing had been."""
    start = [sys.executable, "-m", "recur.train", *SHORT, "trainer.max_epochs=100", f"hydra.run.dir={tmp_path}/run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as first:
        for line in first.stdout:  # type: ignore[union-attr]
            if line.startswith("epoch"):
                break
        second = run_command("train", *SHORT, f"hydra.run.dir={tmp_path}/run")
        again = run_command("train", f"resume={tmp_path}/run")
        first.terminate()
        said = first.communicate()[1]
    for done, why in ((second, "holds a run"), (again, "in use by process")):
        assert done.returncode == 2 and why in done.stderr and len(done.stderr.splitlines()) == 1
    assert first.returncode == 143, said


@pytest.mark.parametrize("place", ["/proc/recur/run", "{file}/run"])
def test_a_folder_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    done = run_command("train", *SHORT, f"hydra.run.dir={place.format(file=tmp_path / 'file')}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def limited(tmp_path: Path, size: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command where no file may grow beyond `size` bytes: writing fails as on a full disk, for root too."""
    return subprocess.run(
        [sys.executable, "-m", "recur.train", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: (
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        ),
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_leaves_the_former_ones(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    assert min(map(len, before.values())) > 60_000
    done = limited(tmp_path, 60_000, f"resume={run}", "trainer.max_epochs=5", "callbacks.last.every_steps=1")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot write" in done.stderr and "ulimit" in done.stderr and "is whole" in done.stderr
    assert {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()} == before
    done = run_command("train", f"resume={run}", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small disk")
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        words = [*SHORT, f"hydra.run.dir={disk}/run", "trainer.max_epochs=40", "callbacks.last.every_steps=1"]
        done = run_command("train", *words, "model.net.hidden_size=24")
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left" in done.stderr
        for path in (disk / "run" / "checkpoints").glob("*.ckpt"):
            assert checkpoints.check(path)
    finally:
        subprocess.run(["umount", disk], check=True)
