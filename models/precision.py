"""In which numbers a network is trained: bfloat16 where a recipe has it and the hardware is made for it.

The weights stay float32 (autocast), and bfloat16 has float32's range, so no loss has to be scaled.
"""

from typing import Literal

import torch

from models.formats import DataError

Precision = Literal["bf16", "float32"]
Choice = Literal["auto", "bf16", "float32"]


def chosen(choice: Choice, wanted: bool, device: torch.device) -> Precision:
    """What is asked for; with "auto", bf16 where a recipe wants it and this device has it.

    Raises DataError where the device has not what is asked for.
    """
    there = supported(device)
    if choice == "bf16" and not there:
        raise DataError(f"{device} has no bfloat16; train with --precision float32")
    return "bf16" if choice == "bf16" or (choice == "auto" and wanted and there) else "float32"


def supported(device: torch.device) -> bool:
    """Whether bfloat16 is not merely emulated there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # As torch itself asks before it hands bfloat16 to oneDNN.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within it, a network computes in these numbers."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
