"""Steps of several batches, whose gradient and rate are means over as many as there are, and of a scaled loss."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from recur.errors import UserError
from support.language_models import new_task, new_trainer, text_data

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (".*LeafSpec.*is deprecated", ".*does not have many workers")  # Lightning's own
]


def test_the_learning_rate_of_several_windows_follows_their_mean_length(tmp_path):
    data = text_data(random_bptt=True, bptt=30)
    task, factors = new_task(data), []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            factors.append(batch.lr_scale)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            group = factors[(len(factors) - 1) // 3 * 3 :]
            assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * sum(group) / len(group))

    new_trainer(tmp_path, callbacks=[Watch()], accumulate_grad_batches=3).fit(task, datamodule=data)
    assert len(set(factors)) > 3


def test_a_step_of_fewer_batches_has_their_mean_gradient(tmp_path):
    data = text_data(bptt=10)
    number, most = len(data.train_dataloader()), 4
    assert number % most
    task, gradients = new_task(data), []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append(pl_module.net.decoder.bias.grad.clone())

    plain = new_task(data)
    for one, batches in ((task, most), (plain, 1)):
        one._optimizer = partial(torch.optim.SGD, lr=0.0)  # the same weights for every batch
        gradients.clear()
        torch.manual_seed(1)
        new_trainer(tmp_path, callbacks=[Watch()], accumulate_grad_batches=batches).fit(one, datamodule=data)
        if one is task:
            ours = list(gradients)
    groups = [gradients[first : first + most] for first in range(0, number, most)]
    for own, group in zip(ours, groups, strict=True):
        torch.testing.assert_close(own, torch.stack(group).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [True, None])
def test_gradients_are_not_clipped_with_the_scale_of_the_loss(tmp_path, fused):
    """A fused optimizer takes the scale off in its own step, after they are clipped; others have none by then."""
    data = text_data()
    task = new_task(data, optimizer=partial(torch.optim.SGD, lr=0.1, fused=fused))
    float16 = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer = new_trainer(tmp_path, max_steps=1, plugins=[float16])
    if fused:
        with pytest.raises(UserError, match=r"optimizer\.fused .*, got True: leave it out") as refused:
            trainer.fit(task, datamodule=data)
        assert "\n" not in str(refused.value) and not trainer.global_step
    else:
        trainer.fit(task, datamodule=data)
        assert trainer.global_step == 1 and trainer.callback_metrics["train/gradient_norm"] < 10
