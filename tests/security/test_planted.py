"""Planted artefacts, each through every command that opens such a thing: nothing runs, changes, leaks or grows.

A class of attack is a folder here, its cases are in `cases.py`; `arena.py` says what is looked at. The representative
of each class runs by default, all of them with the slow tests.
"""

import importlib
import pickle
from pathlib import Path

import pytest

from security.arena import Arena, Case, Listener
from security.bases import FILE, RUN, SWEEP, TEXT_RUN, Bases, Payload, a_checkpoint, a_run, a_sweep, a_text_run

CLASSES = sorted(path.parent.name for path in Path(__file__).parent.glob("*/cases.py"))
ALL = [(kind, case) for kind in CLASSES for case in importlib.import_module(f"security.{kind}.cases").CASES]


@pytest.fixture(scope="session")
def listener():
    """A socket that nobody may call."""
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Valid artefacts."""
    return Bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def arena(tmp_path, made, listener, tmp_path_factory):
    """A place for one command after another: each call gives a fresh one."""
    cache = tmp_path_factory.getbasetemp() / "security-cache"
    cache.mkdir(exist_ok=True)
    counter = iter(range(1000))
    return lambda: Arena(tmp_path / f"arena{next(counter)}", made, listener, cache)


def attempt(case: Case, arena) -> list[str]:
    """Everything that went wrong with a case, command by command."""
    found = []
    for words in case.commands:
        place = arena()
        case.plant(place)
        done = place.call(words, case.own, case.codes)
        wrong = [*done.wrong, *(case.check(place, done) if case.check else ())]
        found += [f"{' '.join(words)}: {what}" for what in wrong]
    return found


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """Slow unless it represents its class; expected to fail where it says why."""
    known = [pytest.mark.xfail(reason=case.fails, strict=True)] if case.fails else []
    return [*known, *([] if case.quick else [pytest.mark.slow])]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{kind}: {case.name}", marks=marks(case)) for kind, case in ALL],
)
def test_a_planted_artefact_does_no_harm(case, arena):
    found = attempt(case, arena)
    assert not found, "\n".join(found)


def test_every_class_is_represented_and_there_are_enough_cases():
    assert len(ALL) >= 250
    assert {kind for kind, case in ALL if case.quick} == set(CLASSES)
    names = [(kind, case.name) for kind, case in ALL]
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------------------------------- the instruments themselves


@pytest.mark.slow
def test_what_is_not_planted_goes_through_every_command(arena):
    for plant, commands, own in (
        (a_run, RUN[:3], ("r",)),
        (a_text_run, TEXT_RUN, ("r",)),
        (lambda place: a_checkpoint(place, lambda content: None), FILE, ("a.ckpt",)),
        (lambda place: a_sweep(place, complete=2), SWEEP, ("s",)),
    ):
        for words in commands:
            place = arena()
            plant(place)
            done = place.call(words, own, (0,))
            assert not done.wrong, (words, done.wrong, done.err)


@pytest.mark.slow
def test_a_sweep_that_is_not_planted_runs_the_job_it_lacks(arena):
    place = arena()
    a_sweep(place, complete=1)
    done = place.call(("train", "-m", "resume=s"), ("s",), (0,))
    assert not done.wrong, (done.wrong, done.err)
    assert (place.work / "s" / "1" / "metrics.json").is_file()


def test_every_kind_of_harm_is_seen(arena):
    place = arena()
    a_run(place)
    # What the user types himself is his own, so this does run, call, change, add and leak.
    script = (
        f"{place.shell}; echo x >> {place.victim}/letter.txt; echo $RECUR_TEST_SECRET > {place.victim}/new; "
        f"rm {place.victim}/empty"
    )
    (place.work / "mine.pkl").write_bytes(pickle.dumps(Payload(script)))
    words = ("+callbacks.mine._target_=pandas.read_pickle", "+callbacks.mine.filepath_or_buffer=mine.pkl")
    done = place.call(("train", "resume=r", *words), ("r",))
    kinds = {wrong.partition(":")[0] for wrong in done.wrong}
    assert kinds >= {"executed", "network", "foreign", "outside", "secret"}, (done.wrong, done.err)
    assert "foreign: victim/empty is gone" in done.wrong and "foreign: victim/letter.txt is changed" in done.wrong


def test_a_pickle_would_run_if_it_were_unpickled(arena):
    place = arena()
    pickle.loads(pickle.dumps(Payload(place.shell)))
    assert place.canary.exists()
