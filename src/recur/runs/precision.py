"""What a run computes in: `trainer.precision`, what its `auto` means on a machine, and what an evaluation follows.

A run's config records what `auto` came to, so that a resumed run goes on in it and an evaluation measures in it.
"""

from collections.abc import Mapping
from typing import Any

import torch

from recur.nn import compiled, products

EXACT, LOW = "32-true", "bf16-mixed"


def resolve(wanted: Any, accelerator: str) -> str:
    """What a new run computes in.

    `auto` is bf16 mixed precision where it is faster: on a GPU that has bfloat16 in hardware, and on a CPU whose
    products of bfloat16 operands a probe found faster than float32's, with the kernels that use them. Elsewhere it is
    32 bits: a processor without bfloat16 only emulates it, many times slower.

    Args:
        wanted: `trainer.precision`.
        accelerator: `trainer.accelerator`.
    """
    if wanted != "auto":
        return str(wanted)
    if _on_gpu(accelerator):
        return LOW if torch.cuda.is_bf16_supported(including_emulation=False) else EXACT
    return LOW if accelerator in ("auto", "cpu") and cpu_gains() else EXACT


def resolve_former(wanted: Any, accelerator: str) -> str:
    """What a run computed in whose config still says `auto`: an earlier version chose bfloat16 on a GPU alone."""
    return EXACT if wanted == "auto" and not _on_gpu(accelerator) else resolve(wanted, accelerator)


def _on_gpu(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def cpu_gains() -> bool:
    """Whether training in bf16-mixed is faster on this CPU than in float32."""
    return compiled.available(torch.float32) and products.bf16_pays()


def emulated(precision: str, accelerator: str) -> bool:
    """Whether this machine would have to emulate bfloat16 for a run."""
    return precision.startswith("bf16") and not _on_gpu(accelerator) and not products.has_bf16()


def of_evaluation(config: Mapping[str, Any], device: torch.device) -> tuple[str, bool]:
    """What a run is evaluated in: bfloat16's mixed precision where it was trained in that, else 32 bits.

    A run of 16 or 64 bits was measured in those when it was trained; its figures can differ in the last digits.

    Args:
        config: of the run.
        device: where it is evaluated.

    Returns:
        the precision, and whether it is another one than the run's for lack of hardware.
    """
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping) or trainer.get("precision") != LOW:
        return EXACT, False
    able = device.type == "cpu" and products.has_bf16()
    if device.type == "cuda":
        with torch.cuda.device(device):
            able = torch.cuda.is_bf16_supported(including_emulation=False)
    return (LOW, False) if able else (EXACT, True)
