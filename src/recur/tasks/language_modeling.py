"""Language modelling as a LightningModule: truncated back-propagation with carried state, perplexity, sampling."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.errors import UserError
from recur.nn.language_model import Hidden, LanguageModel
from recur.nn.losses import TokenLoss, linear_cross_entropy
from recur.nn.packed import TokenWindow
from recur.nn.recurrent import State, detach_state
from recur.nn.regularization import activation_penalty, temporal_penalty
from recur.nn.sampled_softmax import SampledSoftmax
from recur.nn.stepping import stepper
from recur.tasks.base import Stepping, Sums, build_optimizer

_READ_AT_ONCE = 1024  # tokens of a text to be scored


class TokenStatistics(Sums):
    """Sums over tokens: perplexity is exp(sum of NLL / tokens), never a mean of batch perplexities.

    Sums are in float64 and added over ranks, so the figure is that of the whole split, whatever the batches.
    """

    nll: Tensor
    tokens: Tensor
    correct: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, correct: Tensor | None = None) -> None:
        """Add tokens: their negative log-likelihoods in nats, and whether each was the likeliest, `(tokens,)`."""
        self.nll += nll.sum(dtype=torch.float64)
        self.tokens += nll.numel()
        if correct is not None:
            self.correct += correct.sum()

    def update_with_nothing(self) -> None:
        """Add no token."""
        self.update(self.nll.new_zeros(0))

    def compute(self) -> dict[str, Tensor]:
        """Nats a token, perplexity, bits a token and accuracy."""
        loss = self.nll / self.tokens
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits": loss / math.log(2),
            "accuracy": self.correct / self.tokens,
        }


class LanguageModelingTask(Stepping):
    """Trains and evaluates a language model on windows of parallel streams.

    A batch is a window; the state after it, cut from its graph, is where the next one begins. The states of training,
    validation and test are kept apart, and a stream's beginning (`TokenWindow.first`) starts from zeros. The states are
    plain attributes: a buffer would be broadcast from rank 0. Checkpoints hold the training state of every rank.

    Args:
        net: builds the network from `vocab_size`.
        optimizer: builds the optimizer from the parameters; None where nothing is trained.
        scheduler: one of `recur.tasks.schedulers`'s schedules; None keeps the learning rate.
        activation_penalty: weight of the mean square of the top layer's dropped output (AR).
        temporal_penalty: weight of the mean square of the top layer's change between steps (TAR).
        vocab_size: number of token ids.
        character_level: whether a token is a character, so that bits a token are bits a character.
        window: tokens read before each prediction, where the data is single windows; None for streams.
        carry_state: begin each training window with the state of the one before; otherwise each begins from zeros.
            Evaluation carries the state either way.
        sampled_softmax: negatives a step of `recur.nn.sampled_softmax`, which then estimates the training loss; 0 for
            the exact one. Evaluation is exact either way.
        exact_epochs: how many of the last epochs train on the exact loss in spite of that.

    Raises:
        UserError: a negative penalty or number.
    """

    family = "language"
    net: LanguageModel

    def __init__(
        self,
        net: Callable[..., LanguageModel],
        *,
        vocab_size: int,
        character_level: bool = False,
        window: int | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., dict[str, Any] | None] | None = None,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
        carry_state: bool = True,
        sampled_softmax: int = 0,
        exact_epochs: int = 0,
    ) -> None:
        super().__init__()
        numbers = {
            "activation_penalty": activation_penalty,
            "temporal_penalty": temporal_penalty,
            "sampled_softmax": sampled_softmax,
            "exact_epochs": exact_epochs,
        }
        for name, number in numbers.items():
            if not number >= 0:
                raise UserError(f"model.{name}", number, "must be at least 0")
        self.net = net(vocab_size=vocab_size)
        self.character_level, self.window, self.carry_state = character_level, window, carry_state
        self.activation_weight, self.temporal_weight = activation_penalty, temporal_penalty
        self.sampled_softmax = SampledSoftmax(vocab_size, sampled_softmax) if sampled_softmax else None
        self.exact_epochs = exact_epochs
        self._optimizer, self._scheduler = optimizer, scheduler
        self._carried: dict[str, State | None] = {"train": None, "val": None, "test": None}
        self._lr_scales: list[float] = []
        self._began_anew = False  # whether a training window since the last snapshot began from zeros
        self.train_statistics = TokenStatistics()
        self.val_statistics, self.test_statistics = TokenStatistics(), TokenStatistics()

    def forward(self, batch: TokenWindow, state: State | None = None) -> Hidden:
        """Read a window."""
        hidden: Hidden = self.net(batch.text, state)
        return hidden

    def token_loss(self, hidden: Hidden, targets: Tensor, *, with_correct: bool = False) -> TokenLoss:
        """Cross-entropy of the next tokens. Fewer targets than tokens belong to the last rows, the last steps."""
        decoder = self.net.decoder
        features = hidden.features[-len(targets) :].to(decoder.weight.dtype)  # autocast's, after a projection
        return linear_cross_entropy(features, decoder.weight, decoder.bias, targets, with_correct=with_correct)

    def read(self, batch: TokenWindow, split: str) -> Hidden:
        """Read a window from the state carried in `split`, and carry the state after it."""
        carried = self._carried[split]
        carries = self.window is None and (split != "train" or self.carry_state)
        if batch.first or not carries:
            carried = None
            self._began_anew |= split == "train"
        elif carried is not None and carried[0][0].device != batch.text.data.device:  # from a checkpoint
            carried = [tuple(part.to(batch.text.data.device) for part in layer) for layer in carried]
        hidden: Hidden = self(batch, carried)
        # One of no use would go into checkpoints, and of single windows each rank may have another number
        self._carried[split] = detach_state(hidden.state) if carries else None
        return hidden

    # -------------------------------------------------------------------------------------------------------- training

    def prepare(self, data: Any) -> None:
        """Count the words of the training text, for a sampled softmax.

        Args:
            data: with the `tokens` of its split `train`, as `LanguageData` has them.
        """
        if self.sampled_softmax is not None:
            self.sampled_softmax.count(torch.from_numpy(np.asarray(data.tokens("train"), np.int64)))

    def on_fit_start(self) -> None:
        """Refuse settings that do not fit each other, of a trainer built by hand, too."""
        self.check_fit(self.trainer, self)
        super().on_fit_start()

    def check_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a last epoch of a run that does not know which that is.

        Raises:
            UserError: `exact_epochs` of a run without `max_epochs`, or with `max_steps`; bits a character are watched
                where a token is none.
        """
        made = self._scheduler  # by a config or by hand
        schedule = (getattr(made, "arguments", None) or getattr(made, "keywords", {})).get("monitor")
        watched = [schedule, *(getattr(part, "monitor", None) for part in trainer.callbacks)]  # type: ignore[attr-defined]
        if not self.character_level and (named := next((name for name in watched if str(name).endswith("/bpc")), None)):
            remedy = "set data.tokenizer.kind=character, or watch val/loss"
            raise UserError("monitor", named, "is written only where a token is a character", remedy)
        last = trainer.max_epochs
        if self.sampled_softmax is not None and self.exact_epochs and trainer.max_steps >= 0:
            rule = "counts whole epochs from the end of the run, which trainer.max_steps may bring before them"
            raise UserError("model.exact_epochs", self.exact_epochs, rule, "set trainer.max_steps=-1")
        if self.sampled_softmax is not None and self.exact_epochs and (last is None or last < 0):
            rule = "counts from the end of the run, which trainer.max_epochs must give"
            raise UserError("model.exact_epochs", self.exact_epochs, rule, "set trainer.max_epochs")

    def _is_sampled(self) -> bool:
        last = self.trainer.max_epochs
        exact = last is not None and last >= 0 and self.trainer.current_epoch >= last - self.exact_epochs
        return self.sampled_softmax is not None and not exact

    def flop_a_token(self) -> float:
        """See `Stepping`. The output layer has three products, of frozen weights two, with as many rows as are used.

        A sampled step multiplies its candidates' rows of the weights alone, a model of single windows has outputs for
        each window's last token alone.
        """
        decoder, rows = self.net.decoder, self.net.vocab_size
        if self.sampled_softmax is not None and self._is_sampled():
            rows = self.sampled_softmax.candidates_taken
        products = (6.0 if decoder.weight.requires_grad else 4.0) / (self.window or 1)
        return super().flop_a_token() + (products * rows - 6.0 * self.net.vocab_size) * decoder.in_features

    def training_loss(self, hidden: Hidden, targets: Tensor) -> TokenLoss:
        """Cross-entropy of the next tokens, estimated from a sample of the vocabulary where that was asked for."""
        sampled = self.sampled_softmax
        if sampled is None or not self._is_sampled():
            return self.token_loss(hidden, targets)
        decoder = self.net.decoder
        features = hidden.features[-len(targets) :].to(decoder.weight.dtype)
        return sampled(features, decoder.weight, decoder.bias, targets)

    def on_train_batch_start(self, batch: TokenWindow, batch_idx: int) -> None:
        """Keep the windows' learning-rate factors for the step to come."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._lr_scales = []
        self._lr_scales.append(batch.lr_scale)

    def training_step(self, batch: TokenWindow, batch_idx: int) -> Tensor:
        """One window."""
        hidden = self.read(batch, "train")
        loss, nll, _ = self.training_loss(hidden, batch.targets)
        self.train_statistics.update(nll)
        self.log_step("train/loss", nll.detach().mean(), prog_bar=True, batch_size=len(nll))
        if self.activation_weight:
            loss = loss + self.activation_weight * activation_penalty(hidden.dropped)
        if self.temporal_weight:
            loss = loss + self.temporal_weight * temporal_penalty(hidden.raw)
        return self.of_group(loss * batch.scale, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's loss over all its tokens, as the model was while it read them."""
        for name, value in self.epoch_figures().items():
            self.log(name, value)
        self.train_statistics.reset()

    def epoch_figures(self) -> dict[str, Tensor]:
        """See `Stepping`."""
        figures = self.train_statistics.compute()
        return {f"train/epoch_{name}": figures[name] for name in ("loss", "perplexity")}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take the step with the learning rate scaled by the window's length, or by the mean length of several."""
        scale = sum(self._lr_scales) / len(self._lr_scales) if self._lr_scales else 1.0
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * scale
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def configure_optimizers(self) -> Any:
        """Optimizer over what is trainable, and its schedule."""
        assert self._optimizer is not None, "a task without an optimizer cannot be trained"
        optimizer = build_optimizer(self._optimizer, self.parameters())
        schedule = self._scheduler and self._scheduler(optimizer, self.plan_steps())
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    # ------------------------------------------------------------------------------------------------------ evaluation

    def _evaluate(self, batch: TokenWindow, split: str, statistics: TokenStatistics) -> None:
        hidden = self.read(batch, split)
        _, nll, correct = self.token_loss(hidden, batch.targets, with_correct=True)
        statistics.update(nll, correct)

    def _report(self, split: str, statistics: TokenStatistics) -> None:
        figures = statistics.compute()  # adds up over ranks
        bits = figures.pop("bits")
        if self.character_level:
            figures["bpc"] = bits
        self.log_dict({f"{split}/{name}": value.float() for name, value in figures.items()}, sync_dist=True)
        statistics.reset()
        self._carried[split] = None

    def validation_step(self, batch: TokenWindow, batch_idx: int) -> None:
        """Score one window of the validation split."""
        self._evaluate(batch, "val", self.val_statistics)

    def on_validation_epoch_end(self) -> None:
        """Log the split's figures."""
        self._report("val", self.val_statistics)

    def test_step(self, batch: TokenWindow, batch_idx: int) -> None:
        """Score one window of the test split."""
        self._evaluate(batch, "test", self.test_statistics)

    def on_test_epoch_end(self) -> None:
        """Log the split's figures."""
        self._report("test", self.test_statistics)

    # -------------------------------------------------------------------------------------------------------- resuming

    def training_metrics(self) -> list[TokenStatistics]:
        """The epoch's sums."""
        return [self.train_statistics]

    def snapshot(self) -> list[Tensor]:
        """The epoch's sums and, behind them, the carried state."""
        self._began_anew = False
        state = self._carried["train"] or []
        return [*super().snapshot(), *(part for layer in state for part in layer)]

    def restore(self, before: list[Tensor]) -> None:
        """Put them back, the state only where it is not finite: a finite one has read more of the text and is kept.

        A step that began an epoch leaves zeros behind: the state before it is that of the last epoch's end.
        """
        super().restore(before)
        state = self._carried["train"]
        if state is None or all(bool(part.isfinite().all()) for layer in state for part in layer):
            return
        parts = iter(before[-sum(map(len, state)) :])
        fits = len(before) > len(super().snapshot()) and not self._began_anew
        # Zeros and no None, which is the same: a checkpoint gathers the states of all ranks.
        self._carried["train"] = [
            tuple(next(parts) if fits else torch.zeros_like(part) for part in layer) for layer in state
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training state of every rank, too, in rank order."""
        super().on_save_checkpoint(checkpoint)
        state = self._carried["train"]
        if state is None:
            return
        world_size = self.trainer.world_size
        # With one rank a strategy of several would put a dimension before it all the same.
        gathered: list[list[Any]] = [
            [self.all_gather(part) if world_size > 1 else part for part in one] for one in state
        ]
        checkpoint["carried_state"] = [
            [tuple((part[rank] if world_size > 1 else part).cpu() for part in layer) for layer in gathered]
            for rank in range(world_size)
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this rank's. With another number of ranks the loader says why a resume cannot go on."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None:  # opened without one
            return
        states = checkpoint.get("carried_state", [])
        rank = self.trainer.global_rank
        self._carried["train"] = states[rank] if rank < len(states) else None

    # ------------------------------------------------------------------------------------------------------- using it

    @torch.no_grad()
    def token_nll(self, ids: Tensor, start_id: int) -> Tensor:
        """Negative log-likelihood of each token of a text in nats, from what stands before it.

        Args:
            ids: the text, `(tokens,)` int64.
            start_id: what stands before the text; see `recur.data.corpus.start_id`. A model of single windows reads it
                for the first token alone.

        Returns:
            `(tokens,)` float32.
        """
        parts = [self.token_loss(hidden, targets).nll for hidden, targets in self._along(ids, start_id)]
        return torch.cat(parts) if parts else torch.zeros(0)

    @torch.no_grad()
    def ranks(self, ids: Tensor, start_id: int) -> Tensor:
        """Rank of each token of a text among all that could have stood there: 1 for the likeliest.

        Arguments as in `token_nll`; gives `(tokens,)` int64.
        """
        ranks = []
        for hidden, targets in self._along(ids, start_id):
            logits = self.net.logits(hidden.features[-len(targets) :])  # (targets, vocabulary)
            ranks.append((logits > logits.gather(1, targets[:, None])).sum(1) + 1)
        return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)

    def _along(self, ids: Tensor, start_id: int) -> Iterator[tuple[Hidden, Tensor]]:
        """Read a text piece by piece; with each piece the tokens that follow."""
        if not len(ids):
            return
        ids = ids.to(self.device)
        inputs = torch.cat([ids.new_tensor([start_id]), ids[:-1]])
        state: State | None = None
        if self.window is not None:  # trained on windows of text, which no start token begins: it stands for no text
            for index in range(len(ids)):
                before = ids[max(0, index - self.window) : index] if index else inputs[:1]
                yield self._read_alone(before, None), ids[index : index + 1]
            return
        for some, targets in zip(inputs.split(_READ_AT_ONCE), ids.split(_READ_AT_ONCE), strict=True):
            hidden = self._read_alone(some, state)
            state = hidden.state
            yield hidden, targets

    def _read_alone(self, ids: Tensor, state: State | None) -> Hidden:
        hidden: Hidden = self.net(PackedSequence(ids, torch.ones(len(ids), dtype=torch.int64)), state)
        return hidden

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        exclude: Sequence[int] = (),
        generator: torch.Generator | None = None,
        start_id: int | None = None,
    ) -> Iterator[Tensor]:
        """Continue a text for ever, several samples at once; the cost of a token does not grow with the length.

        Args:
            prompt: ids to begin with, `(tokens, samples)` int64, at least one token unless there is a `start_id`.
            temperature: divides the logits; 0 always takes the likeliest token.
            top_k: sample among the likeliest k only.
            top_p: sample among the fewest tokens whose probabilities add up to p only.
            exclude: ids never to produce.
            generator: of random numbers, on the model's device.
            start_id: what is read where the prompt is empty, as in `token_nll`.

        Yields:
            The next token of each sample, `(samples,)` int64.

        Raises:
            UserError: a temperature below 0, a `top_k` below 1, or a `top_p` outside (0, 1].
        """
        continued = self._continued(prompt.to(self.device), start_id)
        logits = next(continued)  # (samples, vocabulary)
        while True:
            if exclude:
                logits[:, list(exclude)] = -math.inf
            token = sample_token(logits, temperature, top_k, top_p, generator)
            yield token
            logits = continued.send(token)

    def _continued(self, recent: Tensor, start_id: int | None) -> Generator[Tensor, Tensor, None]:
        """Logits of the next token of each sample; takes the token that was chosen.

        Args:
            recent: what the model has not read yet, `(time, samples)` int64.
            start_id: what it reads in the place of nothing.
        """
        state: State | None = None
        fed = None
        while fed is None:
            if self.window is not None:  # trained on windows from an empty state: read the last one anew
                recent, state = recent[-self.window :], None
            hidden, samples = self._read_rows(recent, start_id, state), recent.shape[1]
            state = hidden.state
            token = yield self.net.logits(hidden.features[-samples:]).float()
            recent = token[None] if self.window is None else torch.cat([recent, token[None]])
            fed = None if self.window is not None or self.net.training else stepper(self.net, samples)
            if fed is not None:
                fed.load(state)
        while True:
            token = yield fed.step(token)

    def _read_rows(self, recent: Tensor, start_id: int | None, state: State | None) -> Hidden:
        """Read equally long texts, `(time, rows)`; in the place of empty ones the start token."""
        if not len(recent):
            if start_id is None:
                raise UserError("prompt", rule="must have at least one token", remedy="or give a start_id")
            recent = recent.new_full((1, recent.shape[1]), start_id)
        steps, rows = recent.shape
        hidden: Hidden = self.net(PackedSequence(recent.reshape(-1), torch.full((steps,), rows)), state)
        return hidden

    @torch.no_grad()
    def beam_search(
        self, prompt: Tensor, *, tokens: int, beams: int, exclude: Sequence[int] = (), start_id: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The likeliest continuations that a beam finds.

        Each step reads the last token of the best continuations so far in one batch, and keeps the best of all that
        they could become. All continuations are equally long, for a language run's text has no end (`<eos>` ends a
        line): their log-probabilities compare as they are, and no length is rewarded or punished. A beam of at least
        vocabulary ** (tokens - 1) finds the best of all.

        Args:
            prompt: ids to begin with, `(tokens,)` int64, at least one unless there is a `start_id`.
            tokens: length of the continuations.
            beams: continuations kept at each step.
            exclude: ids never to produce; the others' probabilities stay what the model says.
            start_id: what is read where the prompt is empty, as in `token_nll`.

        Returns:
            The continuations, `(found, tokens)` int64, and their log-probabilities in nats, `(found,)` float64, best
            first; `found` is `beams`, or fewer where there are no more.
        """
        recent = prompt.to(self.device)[:, None]  # (time, rows): what the model has not read yet
        logs = torch.zeros(1, dtype=torch.float64, device=self.device)  # of each continuation so far
        written = recent[:0]  # (time, rows)
        state: State | None = None
        for _ in range(tokens):
            if self.window is not None:  # trained on windows from an empty state: read the last one anew
                recent, state = recent[-self.window :], None
            hidden, rows = self._read_rows(recent, start_id, state), recent.shape[1]
            each = self.net.logits(hidden.features[-rows:]).double().log_softmax(1)  # (rows, vocabulary)
            each[:, list(exclude)] = -math.inf
            left = rows * (each.shape[1] - len(set(exclude)))
            logs, best = (logs[:, None] + each).flatten().topk(min(beams, left))
            rows_kept, token = best // each.shape[1], (best % each.shape[1])[None]
            state = [tuple(part[:, rows_kept] for part in layer) for layer in hidden.state]  # (1, rows, size) each
            written = torch.cat([written[:, rows_kept], token])
            recent = token if self.window is None else torch.cat([recent[:, rows_kept], token])
        return written.T, logs


def sample_token(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token of each row: `(rows, vocabulary)` to `(rows,)` int64; arguments and errors as in `generate`."""
    if not temperature >= 0:
        raise UserError("temperature", temperature, "must be at least 0")
    if top_k is not None and top_k < 1:
        raise UserError("top_k", top_k, "must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError("top_p", top_p, "must be above 0 and at most 1")
    if temperature == 0:
        return logits.argmax(1)
    # The largest becomes 0 and a temperature has to be a number of 32 bits, so that nothing overflows or is 0 / 0.
    logits = (logits - logits.max(dim=1, keepdim=True).values) / min(max(temperature, 1e-37), 1e37)
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True)
        probabilities = ordered.softmax(1)
        enough = probabilities.cumsum(1) - probabilities >= top_p  # those before it already add up to p
        logits = torch.full_like(logits, -math.inf).scatter(1, order, ordered.masked_fill(enough, -math.inf))
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
