"""What training minimises and evaluation reports: a sum of nats and a count, divided once.

Shape legend: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pulse88.vocabulary import BLOCKS, PAD, SIZE


def split_targets(ids_BT: Tensor, context_tokens: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and which targets count, each [B, T - 1]; padding and the first `context_tokens` don't."""
    inputs, targets = ids_BT[:, :-1], ids_BT[:, 1:]
    counts = targets != PAD
    if context_tokens:
        counts = counts & (torch.arange(1, ids_BT.shape[1], device=ids_BT.device) >= context_tokens)
    return inputs, targets, counts


def nats(logits_BTV: Tensor, targets_BT: Tensor, counts_BT: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the counted targets of cross-entropy in nats; smoothing spreads its share over all V ids."""
    each = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return (each * counts_BT.flatten()).sum()


def nats_of_each(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """[B, T] unsmoothed nats of every target."""
    flat = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
    return flat.view(targets_BT.shape)


def slot_table(device: torch.device) -> Tensor:
    """[V] number of the slot of each id, 4 for PAD, BOS and EOS."""
    table = torch.full((SIZE,), len(BLOCKS), device=device)
    for slot, block in BLOCKS.items():
        table[block.start : block.stop] = int(slot)
    return table
