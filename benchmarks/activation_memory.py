"""Memory that training needs for a micro-batch, counted on a CPU: what autograd keeps for the backward pass.

    python benchmarks/activation_memory.py --windows 2 --window 1024      some 10 GB of memory; 2048: 25

Every tensor that the forward pass saves is counted once by its storage, without the parameters, under autocast to a
16-bit type as on a GPU. With gradient checkpointing the largest layer's tensors come on top while it is computed again.
The delta rule is the kernel `chunked`, in float32; Triton's kernel keeps less. Attention on a CPU keeps its square
matrices, which kernels on GPUs don't. Allocators and cuBLAS take some hundred megabytes more than is counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from pulse88.config import TRAIN_PRESETS
from pulse88.model import Pulse88
from pulse88.objective import nats, split_targets

MIB = 2**20


def saved_bytes(run: Callable[[], Tensor], known: set[int]) -> int:
    """Bytes of all storages that `run` saves for its backward pass, but those whose addresses are known."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # The graph lives until all is counted, so that no address is used twice.
    total = sum(seen.values())
    del kept
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=2, help="windows of the micro-batch")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--recipe", default="published", choices=list(TRAIN_PRESETS))
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = Pulse88(TRAIN_PRESETS[asked.recipe].model_config).train()
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    ids = torch.randint(0, 168, (asked.windows, asked.window + 1))
    inputs, targets, counts = split_targets(ids)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, _ = model(inputs, model.zero_state(asked.windows))
        return nats(logits, targets, counts)

    layers: list[int] = []
    hooks = []
    for layer in model.layers:
        plain = layer.forward

        def counted(*given: object, plain: Callable[..., object] = plain) -> object:
            kept: list[object] = []

            def run() -> Tensor:
                kept.append(plain(*given))
                return torch.zeros(())

            layers.append(saved_bytes(run, known))
            return kept[0]

        layer.forward = counted
        hooks.append((layer, plain))
    loss()
    for layer, plain in hooks:
        layer.forward = plain
    whole = saved_bytes(loss, known)
    model.gradient_checkpointing = True
    # A checkpoint keeps a layer's input, in float32, where the hooks of autograd don't see it.
    inputs_of_layers = 4 * asked.windows * asked.window * model.config.d_model * len(model.layers)
    checkpointed = saved_bytes(loss, known) + inputs_of_layers
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    fixed = 4 * size + size // 2  # weights, gradients, two moments; weights in 16 bits
    print(f"{asked.windows} windows of {asked.window} tokens, recipe {asked.recipe}")
    print(f"{fixed / MIB:9.0f} MiB weights, gradients, moments, 16-bit copies")
    print(f"{whole / MIB:9.0f} MiB saved without gradient checkpointing")
    print(f"{checkpointed / MIB:9.0f} MiB saved with it, and {max(layers) / MIB:.0f} MiB of the largest layer on top")
    print(f"{(fixed + whole) / MIB:9.0f} MiB in all without, {(fixed + checkpointed + max(layers)) / MIB:.0f} MiB with")


if __name__ == "__main__":
    main()
