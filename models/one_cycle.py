"""AdamW under one cycle of the learning rate (Smith 2018, arXiv:1803.09820): up, and down to nothing."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from models.recipe import Optimizers, Schedule


def one_cycle(rate: float, weight_decay: float = 0.01, rising: float = 0.25) -> Optimizers:
    """For a recipe. The learning rate rises to `rate` over the share `rising` of the steps."""

    def optimizers(net: nn.Module, schedule: Schedule) -> list[tuple[Optimizer, LRScheduler]]:
        adamw = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=weight_decay)
        return [(adamw, OneCycleLR(adamw, max_lr=rate, total_steps=schedule.total_steps, pct_start=rising))]

    return optimizers
