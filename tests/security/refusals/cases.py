"""Commands of the user's own that are refused or fail: the run is as it was, byte for byte, and goes on as before."""

from collections.abc import Iterable

from security.arena import Arena, Case, Done
from security.bases import TINY, a_run

# What is typed after `resume=r`: each is a mistake.
SETTINGS = (
    ("model.net.hidden_size=9",),
    ("model.net.embedding_dim=5",),
    ("model.net.num_layers=2",),
    ("model.net.cell=gru",),
    ("model.net.bidirectional=false",),
    ("optimizer.lr=-1",),
    ("optimizer._target_=torch.optim.SGD",),
    ("optimizer.unheard_of=1",),
    ("trainer.max_epochs=abc",),
    ("trainer.accelerator=gpu",),
    ("trainer.unheard_of=1",),
    ("seed=-1",),
    ("seed=x",),
    ("monitor=val/nothing",),
    ("data.batch_size=0",),
    ("data.synthetic.train_size=0",),
    ("data.tokenizer.kind=character",),
    ("data._target_=recur.data.language.LanguageData",),
    ("callbacks.ema.decay=3",),
    ("callbacks.early_stopping.patience=-1",),
    ("callbacks.last.every_steps=-1",),
    ("+unheard_of=1",),
    ("unheard_of.key=1",),
    ("model.net",),
    ("=",),
    ("optimizer.lr=[",),
    ("experiment=lm",),
)


def _goes_on(arena: Arena, done: Done) -> Iterable[str]:
    """A plain resumption after the refusal."""
    if done.code == 0:
        yield "accepted: the command went through"
        return
    again = arena.call(("train", "resume=r", "trainer.max_epochs=2"), ("r",), (0,))
    yield from (f"afterwards {wrong}" for wrong in again.wrong)


CASES = [
    Case(
        f"resume with {' '.join(words)}",
        a_run,
        (("train", "resume=r", "trainer.max_epochs=3", *words),),
        codes=(2,),
        check=_goes_on,
        quick=words[0] == "model.net.hidden_size=9",
    )
    for words in SETTINGS
]
CASES += [
    Case(
        f"a run's folder named for {kind}",
        a_run,
        (("train", "hydra.run.dir=r", *TINY, *words),),
        codes=(2,),
        check=_goes_on,
    )
    for kind, words in {
        "a new run": (),
        "another run": ("model.net.hidden_size=8",),
        "a run that is refused": ("optimizer.lr=-1",),
        "a run that cannot be composed": ("unheard_of=1",),
        "a run of the other family": ("experiment=lm",),
    }.items()
]
CASES.append(
    Case(
        "a run's folder that is to be overwritten",
        a_run,
        (("train", "hydra.run.dir=r", *TINY, "overwrite=true"),),
        codes=(0,),
    )
)
