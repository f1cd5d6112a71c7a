"""What is refused, row by row: settings, models, and what the other commands are given."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from support.refused_data import LABELLED, ROWS, Content, Row, Runs, pickled_frame, truncated


def settings(*rows: tuple[str, tuple[str, ...]], before: str = "") -> dict[str, Row]:
    return {words: Row(before + words, said) for words, said in rows}


ROWS["config"] = settings(
    ("model.net.hidden_size=0", ("model.net.hidden_size", "0", "at least 1")),
    ("model.net.hidden_size=-3", ("model.net.hidden_size", "-3", "at least 1")),
    ("model.net.hidden_size=big", ("model.net.hidden_size", "'big'", "whole number")),
    ("model.net.hidden_size=1.5", ("model.net.hidden_size", "1.5", "whole number")),
    ("model.net.hidden_size=10000000", ("memory", "model.net")),
    ("model.net.embedding_dim=0", ("model.net.embedding_dim", "0", "at least 1")),
    ("model.net.embedding_std=-1", ("model.net.embedding_std", "-1")),
    ("model.net.num_layers=0", ("model.net.num_layers", "0", "at least 1")),
    ("model.net.dropout=1", ("model.net.dropout", "1", "[0, 1)")),
    ("model.net.dropout=half", ("model.net.dropout", "'half'", "number")),
    ("model.net.word_dropout=-0.1", ("model.net.word_dropout", "-0.1", "[0, 1)")),
    ("model.net.embedding_dropout=1.5", ("model.net.embedding_dropout", "1.5", "[0, 1)")),
    ("model.net.head_dropout=nan", ("model.net.head_dropout", "nan", "[0, 1)")),
    ("model.net.weight_drop=1", ("model.net.weight_drop", "1", "[0, 1)")),
    ("model.net.cell=lsmt", ("model.net.cell", "'lsmt'", "lstm")),
    ("model.net.pooling=mx", ("model.net.pooling", "'mx'", "max")),
    ("model.net.engine=gpu", ("model.net.engine", "'gpu'", "fused")),
    ("model.net.bidirectional=2", ("model.net.bidirectional", "2", "true or false")),
    ("model.net.forget_bias=inf", ("model.net.forget_bias", "inf")),
    ("model.net.freeze_vectors=true", ("freeze_vectors", "data.vectors")),
    ("+model.net.depth=3", ("model.net.depth",)),
    ("data.train=reviews.csv", ("data.train", "'reviews.csv'", "data.synthetic", "data=files")),
    ("model.virtual_adversarial=-1", ("model.virtual_adversarial", "-1", "at least 0")),
    ("model.virtual_adversarial=.1 model.adversarial=.1", ("model.virtual_adversarial", "model.adversarial", "one of")),
    ("data.limit_unlabelled=0", ("data.limit_unlabelled", "0", "at least 1")),
    ("model.layer_rate=0", ("model.layer_rate", "0", "at most 1")),
    ("model.layer_rate=2", ("model.layer_rate", "2", "at most 1")),
    ("model.unfreeze_epochs=-1", ("model.unfreeze_epochs", "-1", "at least 0")),
    ("model.unfreeze_epochs=0.5", ("model.unfreeze_epochs", "0.5", "whole number")),
    ("model.unfreeze_epochs=5", ("model.unfreeze_epochs", "5", "after 10 epochs", "ends with epoch 10")),
    ("model.label_smoothing=1", ("model.label_smoothing", "1", "[0, 1)")),
    ("model.class_weights=balance", ("model.class_weights", "'balance'", "balanced")),
    ("model.class_weights=[1,2,3]", ("model.class_weights", "3", "2 classes")),
    ("model.class_weights=[1,-2]", ("model.class_weights", "-2")),
    ("data.batch_size=0", ("data.batch_size", "0", "at least 1")),
    ("data.eval_batch_size=-1", ("data.eval_batch_size", "-1", "at least 1")),
    ("data.max_tokens=0", ("data.max_tokens", "0", "at least 1")),
    ("data.max_length=0", ("data.max_length", "0", "at least 1")),
    ("data.limit_train=0", ("data.limit_train", "0", "at least 1")),
    ("data.keep=middle", ("data.keep", "'middle'", "both")),
    ("data.tokenizer.kind=words", ("data.tokenizer.kind", "'words'", "whitespace")),
    ("data.tokenizer.min_frequency=0", ("data.tokenizer.min_frequency", "0", "at least 1")),
    ("data.tokenizer.max_size=1", ("data.tokenizer.max_size", "1", "at least 2")),
    ("data.tokenizer.min_frequency=1000000", ("data.tokenizer.min_frequency", "1000000", "lower")),
    ("+data.tokenizer.lower=true", ("data.tokenizer.lower", "is no setting", "kind")),
    ("data.tokenizer=bpe", ("data.tokenizer", "'bpe'")),
    ("data.synthetic.train_size=0", ("data.synthetic.train_size", "at least 1")),
    ("data.synthetic.noise=2", ("data.synthetic", "noise", "2")),
    ("data.synthetic.gap=-1", ("data.synthetic", "gap", "-1")),
    ("data.seed=-1", ("data.seed", "-1")),
    ("data=files data.train=a.csv data.val_fraction=1.5", ("data.val_fraction", "1.5")),
    ("data=files data.train=a.csv data.on_bad_row=ignore", ("data.on_bad_row", "'ignore'", "skip")),
    ("data=files data.train=[]", ("data.train", "at least one file")),
    ("data=files data.train=3", ("data.train", "3")),
    ("optimizer.lr=0", ("optimizer.lr", "0", "above 0")),
    ("optimizer.lr=-1", ("optimizer.lr", "-1", "above 0")),
    ("optimizer.lr=inf", ("optimizer.lr", "inf", "above 0")),
    ("optimizer.lr=fast", ("optimizer.lr", "'fast'", "number")),
    ("optimizer.weight_decay=-1", ("weight_decay", "-1")),
    ("optimizer.betas=[2,0.9]", ("optimizer", "beta", "2")),
    ("optimizer.betas=0.9", ("optimizer", "betas", "0.9")),
    ("optimizer=sgd optimizer.momentum=-1", ("momentum", "-1")),
    ("optimizer=sgd optimizer.nesterov=true", ("optimizer", "momentum")),
    ("scheduler=multistep", ("scheduler.epochs", "[20, 30]", "behind the run's end, epoch 10")),
    ("scheduler=step scheduler.every_epochs=0", ("scheduler.every_epochs", "0", "at least 1")),
    ("scheduler=step scheduler.gamma=0", ("scheduler.gamma", "0", "above 0")),
    ("scheduler=exponential scheduler.gamma=-0.5", ("scheduler.gamma", "-0.5", "above 0")),
    ("scheduler=plateau scheduler.factor=1.5", ("scheduler.factor", "1.5", "(0, 1)")),
    ("scheduler=plateau scheduler.mode=up", ("scheduler.mode", "'up'", "max")),
    ("scheduler=plateau scheduler.patience=-1", ("scheduler.patience", "-1", "at least 0")),
    ("scheduler=plateau scheduler.monitor=val/acuracy", ("val/acuracy", "val/accuracy")),
    ("scheduler=cosine scheduler.warmup=1.5", ("scheduler.warmup", "1.5", "[0, 1)")),
    ("scheduler=linear scheduler.floor=2", ("scheduler.floor", "2", "[0, 1]")),
    ("scheduler=one_cycle scheduler.rise=2", ("scheduler.rise", "2", "(0, 1)")),
    ("scheduler=one_cycle scheduler.start_div=0", ("scheduler.start_div", "0", "above 0")),
    ("trainer.log_every_n_steps=0", ("trainer.log_every_n_steps", "0", "at least 1")),
    ("trainer.gradient_clip_val=inf", ("trainer.gradient_clip_val", "at least 0 and finite", "inf")),
    ("trainer.num_sanity_val_steps=-5", ("trainer.num_sanity_val_steps", "-5", "at least -1")),
    ("trainer.limit_val_batches=0", ("trainer.limit_val_batches", "val/accuracy")),
    ("trainer.accumulate_grad_batches=1000", ("trainer.accumulate_grad_batches", "1000", "batches of an epoch")),
    ("trainer.limit_train_batches=0.0001", ("trainer.limit_train_batches", "0.0001", "less than one of the")),
    ("trainer.limit_val_batches=0.01", ("trainer.limit_val_batches", "0.01", "less than one of the")),
    ("trainer.limit_test_batches=0.01", ("trainer.limit_test_batches", "0.01", "less than one of the")),
    ("+trainer.overfit_batches=0.0001", ("trainer.overfit_batches", "0.0001", "less than one of the")),
    ("trainer.val_check_interval=1000", ("trainer.val_check_interval", "1000", "batches of an epoch", "n_epoch=null")),
    ("trainer.precision=16-mixed", ("trainer.precision", "'16-mixed'", "32-true")),
    ("trainer.fast_dev_run=-1", ("trainer.fast_dev_run", "-1", "at least 0")),
    ("+trainer.callbacks=[]", ("trainer.callbacks", "callbacks.NAME")),
    ("trainer.callbacks=[]", ("trainer.callbacks", "callbacks.NAME")),
    ("trainer.profiler=simpel", ("trainer.profiler", "'simpel'", "simple or advanced")),
    ("+ckpt_path=a.ckpt", ("ckpt_path", "is no setting", "resume=RUN", "init_from=RUN")),
    ("name=../..", ("name", "'../..'", "below outputs")),
    ("name=''", ("name", "''", "below outputs")),
    (f"optimizer.lr={'[' * 3000}", ("optimizer.lr",)),
    ("model.net.forget_bias=1e40", ("model.net.forget_bias", "1e+40", "1000", "or be null")),
    ("optimizer.betas=[.9]", ("optimizer.betas", "[0.9]", "a list of 2 values")),
    ("scheduler=cosine trainer.max_epochs=-1", ("trainer.max_epochs", "max_steps")),
    ("trainer.enable_checkpointing=false", ("trainer.enable_checkpointing", "~callbacks.best ~callbacks.last")),
    ("+trainer.reload_dataloaders_every_n_epochs=1", ("trainer.reload_dataloaders_every_n_epochs", "leave it out")),
    ("trainer.max_epochs=0", ("trainer.max_epochs", "0", "at least 1")),
    ("trainer.max_epochs=-5", ("max_epochs", "-5")),
    ("trainer.max_steps=0", ("trainer.max_steps", "0", "at least 1")),
    ("trainer.max_epochs=many", ("trainer.max_epochs", "'many'", "whole number")),
    ("trainer.gradient_clip_val=-1", ("trainer.gradient_clip_val", "-1", "null")),
    ("trainer.gradient_clip_algorithm=median", ("gradient_clip_algorithm", "median", "norm")),
    ("trainer.accumulate_grad_batches=0", ("trainer.accumulate_grad_batches", "0", "at least 1")),
    ("trainer.precision=12", ("precision", "12", "32")),
    ("trainer.accelerator=abacus", ("accelerator", "abacus", "cpu")),
    ("trainer=gpu trainer.devices=99", ("GPU",)),
    ("trainer=cpu trainer.devices=0", ("devices", "0")),
    ("trainer=cpu trainer.devices=999", ("trainer.devices", "999", "lower")),
    ("trainer.strategy=magic", ("strategy", "magic")),
    ("trainer.limit_train_batches=0", ("trainer.limit_train_batches", "0")),
    ("trainer.val_check_interval=0", ("val_check_interval", "0")),
    ("trainer.check_val_every_n_epoch=0", ("check_val_every_n_epoch", "0")),
    ("seed=-1", ("seed", "-1", "of at least 0 and at most 4294967295")),
    ("seed=4294967296", ("seed", "4294967296", "at most 4294967295")),
    ("seed=1.5", ("seed", "1.5", "whole number")),
    ("seed=lucky", ("seed", "lucky", "whole number")),
    ("monitor=val/acuracy", ("val/acuracy", "val/accuracy")),
    ("mode=up", ("mode", "up", "max")),
    ("monitor=val/loss", ("mode", "min for val/loss", "'max'", "add mode=min")),
    ("scheduler=plateau scheduler.monitor=val/loss", ("scheduler.mode", "'max'", "add scheduler.mode=min")),
    ("test=maybe", ("test", "'maybe'", "true or false")),
    ("callbacks.ema=0.9", ("callbacks.ema", "0.9", "_target_")),
    ("callbacks.best.monitor=val/acc", ("callbacks.best.monitor", "'val/acc'", "val/accuracy")),
    ("callbacks.last.every_minutes=nan", ("callbacks.last.every_minutes", "nan", "above 0")),
    ("monitor=accuracy", ("monitor", "'accuracy'", "val/accuracy")),
    ("data.batch_size=99999999999999999999", ("data.batch_size", "99999999999999999999", "too large")),
    ("trainer.max_epochs={a:1}", ("trainer.max_epochs", "{'a': 1}", "whole number")),
    ("data=files data.train={a:1}", ("data.train", "{'a': 1}")),
    ("callbacks.ema.decay=2", ("callbacks.ema.decay", "2", "below 1")),
    ("callbacks.ema.decay=0.9 callbacks.ema.start_step=-1", ("callbacks.ema.start_step", "-1", "at least 0")),
    ("callbacks.early_stopping.patience=-1", ("callbacks.early_stopping.patience", "-1", "at least 0")),
    ("callbacks.last.every_minutes=-1", ("callbacks.last.every_minutes", "-1")),
    ("callbacks.pages.mistakes=-1", ("mistakes", "-1")),
    ("optimizer.lrr=1", ("optimizer.lrr", "did you mean optimizer.lr?")),
    ("hidden_size=3", ("hidden_size", "did you mean model.net.hidden_size?")),
    ("model.net.hiden_size=3", ("model.net.hiden_size", "did you mean model.net.hidden_size?")),
    ("experiment=imdb_fsat", ("'imdb_fsat'", "did you mean imdb_fast?")),
    ("dta=imdb", ("dta", "did you mean data?")),
    ("data=[1,2]", ("data=[1,2]",)),
    ("model=\x1b[2J", ("\\x1b[2J",)),
    (f"data=files data.train={'long/' * 2000}a.csv", ("no such file", "long/long", " ... ")),
    ("modell=bilstm", ("modell", "did you mean model?")),
    ("~model.net", ("model.net is missing",)),
    ("~model._target_", ("model._target_ is missing",)),
    ("~trainer._target_", ("trainer._target_ is missing",)),
    ("~optimizer._target_", ("optimizer._target_ is missing",)),
    ("optimizer=null", ("optimizer=null", "cannot be composed")),
    ("model=bilstn", ("'bilstn'", "did you mean bilstm?")),
    ("optimizer.lr", ("optimizer.lr",)),
    ("optimizer.lr=[1", ("optimizer.lr=[1",)),
    ("name=${oc.env:NO_SUCH_VARIABLE}", ("NO_SUCH_VARIABLE",)),
    ("name=${nme}", ("nme",)),
    ("model.net._target_=recur.nn.classifier.Clasifier", ("Clasifier",)),
    ("data.cache_dir=/proc/no", ("/proc/no", "data.cache_dir")),
    ("--config-name=trian", ("trian",)),
    ("--multirn seed=0,1", ("--multirn", "did you mean --multirun?")),
)
for row in ("val_fraction", "on_bad_row"):
    for name in [name for name in ROWS["config"] if row in name]:
        ROWS["config"][name] = ROWS["config"][name]._replace(files={"a.csv": LABELLED})

ROWS["language config"] = settings(
    ("data.bptt=0", ("data.bptt", "0", "at least 1")),
    ("data.bptt=long", ("data.bptt", "'long'", "whole number")),
    ("data.eval_bptt=-1", ("data.eval_bptt", "-1", "at least 1")),
    ("data.window=0", ("data.window", "0", "at least 1")),
    ("data.batch_size=1000000", ("tokens", "1000000", "data.batch_size")),
    ("data.tokenizer.kind=subword", ("data.tokenizer.kind", "'subword'", "bpe")),
    ("data.tokenizer.kind=bpe data.tokenizer.max_size=100", ("data.tokenizer.max_size", "100", "257")),
    ("model.net.embedding_dim=400", ("tie_weights", "400", "200", "model.net.project=true")),
    ("model.net.output_size=0", ("model.net.output_size", "0", "at least 1")),
    ("model.net.row_dropout=1", ("model.net.row_dropout", "1", "[0, 1)")),
    ("model.net.output_dropout=-1", ("model.net.output_dropout", "-1", "[0, 1)")),
    ("model.net.cell=mogrifier model.net.cell_options={round:3}", ("model.net.cell_options", "'round'", "rounds")),
    ("model.net.cell=mogrifier model.net.cell_options={rounds:-1}", ("rounds", "-1")),
    ("model.net.cell_options={rounds:3}", ("model.net.cell_options", "'rounds'", "lstm")),
    ("model.net.freeze_vectors=true", ("model.net.freeze_vectors", "random", "init_from=RUN")),
    ("model.activation_penalty=-1", ("model.activation_penalty", "-1", "at least 0")),
    ("callbacks.samples.tokens=-1", ("callbacks.samples.tokens", "-1", "at least 0")),
    ("callbacks.samples.temperature=-1", ("callbacks.samples.temperature", "-1", "at least 0")),
    ("model=awd_lstm callbacks.averaging.interval=-1", ("callbacks.averaging.interval", "-1", "at least 0")),
    ("model=awd_lstm callbacks.averaging.monitor=val/accuracy", ("callbacks.averaging.monitor", "falls", "val/loss")),
    (
        "model=awd_lstm model.net.project=true callbacks.ema.decay=0.9",
        ("callbacks.ema", "two averages", "callbacks.averaging=null"),
    ),
    ("callbacks.ema.decay=0.9 trainer.precision=bf16-true", ("trainer.precision", "bf16-true", "bf16-mixed")),
    (
        "model.sampled_softmax=9 model.exact_epochs=1 trainer.max_steps=9",
        ("model.exact_epochs", "trainer.max_steps=-1"),
    ),
    ("data.synthetic.train_size=10", ("tokens", "data.batch_size")),
    ("data.path=book.txt", ("data.path", "'book.txt'", "data.synthetic", "data=text_files")),
    ("data=sentence data.test=book.txt", ("data.test", "'book.txt'", "data.text")),
    ("data=text_files data.train=a.txt data.val_fraction=0.6 data.test_fraction=0.6", ("data.val_fraction", "0.6")),
    ("data=sentence data.text=''", ("data.text", "empty")),
    before="model=language_model data=synthetic_text ",
)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Runs], None]:
    """The sentiment run's checkpoint with something changed."""

    def make(path: Path, runs: Runs) -> None:
        content = torch.load(runs.sentiment / "checkpoints" / "best.ckpt", weights_only=True)
        change(content)
        torch.save(content, path)

    return make


def run_folder(*without: str) -> Callable[[Path, Runs], None]:
    def make(path: Path, runs: Runs) -> None:
        shutil.copytree(runs.sentiment, path)
        for name in without:
            shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return make


def other_data(path: Path, runs: Runs) -> None:
    """The run, as one that saw other labels."""
    run_folder()(path, runs)
    last = path / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["recur"]["fingerprint"]["train"]["labels"] = "0" * 32
    torch.save(content, last)


def earlier_format(path: Path, runs: Runs) -> None:
    run_folder()(path, runs)
    last = path / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["recur"]["format"] = 1
    torch.save(content, last)


def damaged_config(text: str) -> Callable[[Path, Runs], None]:
    def make(path: Path, runs: Runs) -> None:
        run_folder()(path, runs)
        (path / ".hydra" / "config.yaml").write_text(text)

    return make


CKPT = "{sentiment}/checkpoints/best.ckpt"
ROWS["predict"] = {
    "run of an unknown user": Row("~no-such-user/run 'a film'", ("there is no run at ~no-such-user/run",)),
    "file separated by semicolons": Row(
        "{sentiment} --file a.csv", ("'text;id'", "--delimiter ';'"), {"a.csv": "text;id\na film;1\n"}
    ),
    "gates of a long text": Row(
        "{sentiment} --gates g.png '" + "film " * 301 + "'", ("--gates", "1 to 300 tokens, got 301")
    ),
    "no run": Row("absent 'a film'", ("absent", "run folder")),
    "a folder that is no run": Row("d 'a film'", ("d ", "not a run folder"), {"d": None}),
    "a run without a checkpoint": Row("r 'a film'", ("r ", "checkpoints"), {"r": run_folder("checkpoints")}),
    "a text for a checkpoint": Row("a.ckpt 'a film'", ("a.ckpt", "checkpoint"), {"a.ckpt": "a film"}),
    "an empty checkpoint": Row("a.ckpt 'a film'", ("a.ckpt", "checkpoint"), {"a.ckpt": b""}),
    "a truncated checkpoint": Row("a.ckpt 'a film'", ("a.ckpt", "truncated"), {"a.ckpt": truncated(CKPT)}),
    "a newer format": Row(
        "a.ckpt 'a film'", ("a.ckpt", "format 99"), {"a.ckpt": edited(lambda c: c["recur"].update(format=99))}
    ),
    "a format that is none": Row(
        "a.ckpt 'a film'", ("a.ckpt", "format", "'x'"), {"a.ckpt": edited(lambda c: c["recur"].update(format="x"))}
    ),
    "somebody else's checkpoint": Row(
        "a.ckpt 'a film'", ("a.ckpt", "'recur'"), {"a.ckpt": edited(lambda c: c.pop("recur"))}
    ),
    "a checkpoint without a tokenizer": Row(
        "a.ckpt 'a film'", ("a.ckpt", "tokenizer"), {"a.ckpt": edited(lambda c: c["recur"].pop("tokenizer"))}
    ),
    "a damaged tokenizer": Row(
        "a.ckpt 'a film'", ("a.ckpt", "tokenizer"), {"a.ckpt": edited(lambda c: c["recur"].update(tokenizer="{}"))}
    ),
    "weights of another shape": Row(
        "a.ckpt 'a film'",
        ("a.ckpt", "weights"),
        {"a.ckpt": edited(lambda c: c["recur"]["config"]["model"]["net"].update(hidden_size=5))},
    ),
    "weights missing": Row(
        "a.ckpt 'a film'", ("a.ckpt", "weights"), {"a.ckpt": edited(lambda c: c["state_dict"].clear())}
    ),
    "a config that is none": Row(
        "a.ckpt 'a film'", ("a.ckpt", "config"), {"a.ckpt": edited(lambda c: c["recur"].update(config=[]))}
    ),
    "no such input": Row("{sentiment} --file absent.csv", ("absent.csv", "no file")),
    "a folder for input": Row("{sentiment} --file d", ("d", "no file"), {"d": None}),
    "a pickle for input": Row("{sentiment} --file a.pkl", ("a.pkl", "pickle"), {"a.pkl": pickled_frame}),
    "another suffix": Row("{sentiment} --file a.doc", ("a.doc", ".csv"), {"a.doc": "a film"}),
    "another column": Row(
        "{sentiment} --file a.csv", ("'text'", "'review'", "--column"), {"a.csv": "review\na film\n"}
    ),
    "no such column": Row(
        "{sentiment} --file a.csv --column txt", ("'txt'", "'text'", "--column"), {"a.csv": "text\na film\n"}
    ),
    "a bad row": Row("{sentiment} --file a.csv", ("a.csv row 2", "--skip-bad-rows"), {"a.csv": "text\na film\n \n"}),
    "not UTF-8": Row("{sentiment} --file a.txt", ("a.txt line 1", "0xff", "iconv"), {"a.txt": b"\xff\xfe"}),
    "empty text": Row("{sentiment} ''", ("text 1 is empty", "--skip-bad-rows")),
    "no text": Row("{sentiment}", ("standard input",)),
    "no token": Row("{sentiment} ;;", ("text 1 has no tokens", "';;'")),
    "control characters": Row("\x1b[2J\u202e\x07absent 'a film'", (r"\x1b[2J\u202e\x07absent", "run folder")),
    "device": Row("{sentiment} a --device abacus", ("--device abacus",)),
    "device without numbers": Row("{sentiment} a --device meta", ("--device meta",)),
    "a length that is no number": Row(
        "a.ckpt 'a film'",
        ("a.ckpt", "max_length", "'x'"),
        {"a.ckpt": edited(lambda c: c["recur"]["config"]["data"].update(max_length="x"))},
    ),
    "weights that are no numbers": Row(
        "a.ckpt 'a film'",
        ("a.ckpt", "not all finite"),
        {"a.ckpt": edited(lambda c: next(iter(c["state_dict"].values())).fill_(float("nan")))},
    ),
    "an existing file for answers": Row("{sentiment} a --out a.csv", ("a.csv", "--overwrite"), {"a.csv": "x"}),
    "GPU that is not there": Row("{sentiment} a --device cuda:77", ("--device cuda:77",)),
    "page nowhere": Row("{sentiment} a --html no/page.html", ("no/page.html", "folder")),
    "page onto a folder": Row("{sentiment} a --html d", ("d", "folder"), {"d": None}),
    "option": Row("{sentiment} a --explian", ("--explian", "--explain")),
    "no run at all": Row("", ("run",)),
}
ROWS["evaluate"] = {
    "no run": Row("absent", ("absent", "run folder")),
    "no such split": Row("{sentiment} --split dev", ("--split", "'dev'", "val")),
    "split that is not there": Row("{language} --split test", ("'test'", "train")),
    "no such data": Row("{sentiment} --data absent.csv", ("absent.csv",)),
    "empty data": Row("{sentiment} --data a.csv", ("a.csv is empty",), {"a.csv": ""}),
    "labels of others": Row(
        "{sentiment} --data a.csv", ("a.csv row 1", "'7'", "'negative'"), {"a.csv": "text,label\nfilm,7\nplot,8\n"}
    ),
    "no label column": Row("{sentiment} --data a.csv", ("'label'", "label_column"), {"a.csv": "text,stars\nfilm,1\n"}),
    "unknown setting": Row("{sentiment} batchsize=3", ("batchsize", "did you mean batch_size?")),
    "setting of a wrong type": Row("{sentiment} eval_batch_size=many", ("eval_batch_size", "'many'")),
    "setting not YAML": Row("{sentiment} 'text_column=[a'", ("text_column=[a cannot be read", "','")),
    "half a setting": Row("{sentiment} batch_size={{", ("batch_size={ cannot be read",)),
    "foreign class in a setting": Row("{sentiment} synthetic._target_=os.system", ("os.system",)),
    "language option": Row("{sentiment} --dynamic 0.001", ("language", "sentiment run")),
    "dynamic rate": Row("{language} --dynamic -1", ("--dynamic", "-1", "above 0")),
    "no number": Row("{language} --dynamic fast", ("--dynamic", "'fast'")),
    "cache size": Row("{language} --cache 0", ("--cache", "0", "above 0")),
    "cache over windows": Row("{language} --cache 100", ("--cache", "each window by itself")),
    "cache weight alone": Row("{language} --cache-weight .1", ("--cache-weight", "--cache")),
    "endless rate": Row("{language} --dynamic inf", ("--dynamic", "inf")),
    "device": Row("{sentiment} --device abacus", ("--device abacus",)),
    "device without numbers": Row("{sentiment} --device meta", ("--device meta",)),
    "a pickle for data": Row("{sentiment} --data a.pkl", ("a.pkl", "allow_pickle=true"), {"a.pkl": pickled_frame}),
}
ROWS["generate"] = {
    "wrong family": Row("{sentiment}", ("language run", "sentiment run")),
    "no run": Row("absent", ("absent", "run folder")),
    "truncated": Row("a.ckpt", ("a.ckpt", "truncated"), {"a.ckpt": truncated("{language}/checkpoints/best.ckpt")}),
    "temperature 0": Row("{language} --temperature 0", ("--temperature", "0.0", "greedy")),
    "temperature below": Row("{language} --temperature -1", ("--temperature", "-1", "from 0.001")),
    "temperature nan": Row("{language} --temperature nan", ("--temperature", "nan", "from 0.001")),
    "temperature inf": Row("{language} --temperature inf", ("--temperature", "inf")),
    "temperature word": Row("{language} --temperature hot", ("--temperature", "'hot'")),
    "top-k": Row("{language} --top-k 0", ("--top-k", "0", "at least 1")),
    "top-p": Row("{language} --top-p 1.5", ("--top-p", "1.5", "at most 1")),
    "top-p 0": Row("{language} --top-p 0", ("--top-p", "0", "above 0")),
    "tokens": Row("{language} --tokens 0", ("--tokens", "0", "at least 1")),
    "tokens word": Row("{language} --tokens many", ("--tokens", "'many'")),
    "temperature next to 0": Row("{language} --temperature 1e-320", ("--temperature", "1e-320", "from 0.001")),
    "samples": Row("{language} --samples -1", ("--samples", "-1", "from 1 to")),
    "samples beyond memory": Row("{language} --samples 1000000000", ("--samples", "1000000000", "from 1 to")),
    "device without numbers": Row("{language} --device meta", ("--device meta",)),
    "seed": Row("{language} --seed 99999999999999999999", ("--seed", "99999999999999999999")),
    "device": Row("{language} --device abacus", ("--device abacus",)),
    "a text where an option belongs": Row("{language} the king", ("the king", "--help")),
}


def sweep_file(text: str) -> dict[str, Content]:
    return {"s/sweep.jsonl": text}


HEADER = '{"event": "sweep", "format": 1, "monitor": "val/loss", "mode": "min", "jobs": 1}\n'
ROWS["results"] = {
    "folder of an unknown user": Row("~no-such-user/sweep", ("there is no sweep at ~no-such-user/sweep",)),
    "no folder": Row("absent", ("no sweep at absent",)),
    "no sweep": Row("d", ("d is not a sweep and not a run",), {"d": None}),
    "nothing in it": Row("s", ("sweep.jsonl", "damaged"), sweep_file("")),
    "something else in it": Row("s", ("sweep.jsonl", "damaged"), sweep_file("[1]\n{}\nx\n")),
    "a newer format": Row("s", ("format 9", "1"), sweep_file(HEADER.replace('"format": 1', '"format": 9'))),
    "no job": Row("s", ("no job", "has run yet"), sweep_file(HEADER)),
    "half a header": Row("s", ("sweep.jsonl", "monitor"), sweep_file('{"event": "sweep"}\n')),
    "half a job": Row("s", ("sweep.jsonl", "event 2", "job"), sweep_file(HEADER + '{"event": "start"}\n')),
    "metric": Row(
        "s --metric val/f1",
        ("'val/f1'",),
        sweep_file(HEADER + '{"event": "start", "job": 0, "overrides": [], "folder": "0"}\n'),
    ),
    "mode": Row("s --mode best", ("--mode", "'best'")),
    "top": Row("s --top many", ("--top", "'many'")),
}
ROWS["readme"] = {
    "no run": Row("absent", ("absent", "metrics.json")),
    "no metrics": Row("d", ("d ", "metrics.json"), {"d": None}),
}
ROWS["bench"] = {
    "section": Row("enginn --quick", ("enginn", "did you mean engine?")),
    "device": Row("engine --device abacus", ("'abacus'", "cpu")),
    "repeats": Row("engine --quick --repeats -1", ("--repeats", "-1", "at least 1")),
}
ROWS["resume"] = {
    "run of an unknown user": Row("resume=~no-such-user/run", ("~no-such-user/run", "is not a run folder")),
    "nowhere": Row("resume=absent", ("absent", "not a run folder")),
    "a file": Row("resume=a.txt", ("a.txt", "not a run folder"), {"a.txt": "a"}),
    "no checkpoint yet": Row("resume=r", ("r", "last.ckpt"), {"r": run_folder("checkpoints")}),
    "config not YAML": Row("resume=r", ("config.yaml", "YAML"), {"r": damaged_config("a: [1\nb: }{")}),
    "config no mapping": Row("resume=r", ("config.yaml",), {"r": damaged_config("- 1\n- 2\n")}),
    "config empty": Row("resume=r", ("config.yaml",), {"r": damaged_config("")}),
    "config half": Row("resume=r", ("config.yaml",), {"r": damaged_config("seed: 0\nname: x\n")}),
    **{
        f"changed {change}": Row(
            f"resume=r trainer.max_epochs=9 {change}", (*said, "when the run began"), {"r": run_folder()}
        )
        for change, said in {
            "optimizer.lr=1e-9": ("optimizer.lr", "0.01", "1e-09"),
            "seed=5": ("seed", "0", "5"),
            "data.synthetic.train_size=128": ("data.synthetic.train_size", "800", "128"),
            "model.net.hidden_size=9": ("model.net.hidden_size", "16", "9"),
            "data.batch_size=9": ("data.batch_size", "20", "9"),
            "optimizer._target_=torch.optim.SGD": ("optimizer._target_", "Adam", "SGD"),
        }.items()
    },
    "a group of another run": Row("resume=r data=imdb", ("data", "no groups to choose from"), {"r": run_folder()}),
    "a value that is none": Row(
        "resume=r trainer.max_epochs=many", ("trainer.max_epochs", "'many'"), {"r": run_folder()}
    ),
    "other data": Row(
        "resume=r trainer.max_epochs=9", ("labels of the train split", "accept_data_change"), {"r": other_data}
    ),
    "an earlier format": Row("resume=r", ("format 1", "train it again"), {"r": earlier_format}),
}
ROWS["new run"] = {
    "over a run": Row("hydra.run.dir=r trainer=cpu", ("holds a run", "overwrite=true"), {"r": run_folder()}),
    "over a run, with a mistake": Row(
        "hydra.run.dir=r optimizer.lr=-1 overwrite=true", ("optimizer.lr", "-1"), {"r": run_folder()}
    ),
    "over somebody's files": Row(
        "hydra.run.dir=r trainer=cpu overwrite=true", ("config.yaml", "no run wrote"), {"r/config.yaml": "a: 1"}
    ),
    "onto a file": Row("hydra.run.dir=r trainer=cpu", ("is a file",), {"r": "mine"}),
    "a sweep without a part": Row("-m ~trainer seed=0,1 hydra.sweep.dir=new", ("trainer is missing",)),
    "a sweep that is none": Row("-m resume=absent", ("no sweep at absent",)),
}
