"""Weights cut over the ranks (FSDP2), whole on a rank only while a layer is at work.

transformers' modules hold the weights and functions compute with them (layers.py), so a module's own
forward pass, where FSDP2 gathers and frees, is never called. `through` calls a function in its place.
What is trained is kept in float32 (the optimizer's master weights are the shards themselves), is
gathered in the type that the model computes in, and its gradients are summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

_CALL = "call_with_whole_weights"


def through(module: torch.nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call function(module, *arguments) with the module's weights whole; a module that is not cut is called as it is.

    Gradients of tensors among the arguments, and of what is returned, start and end the module's turn
    in the backward pass: return tensors, or tuples of them.
    """
    if not isinstance(module, FSDPModule):
        return function(module, *arguments)
    return getattr(module, _CALL)(function, *arguments)


def _call(module: torch.nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(module, *arguments)


def cut(root: torch.nn.Module, layers: Iterable[torch.nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Cut the weights of a model over all ranks, each of the layers apart, in place; they end up on the device.

    Every rank must have loaded the same weights, on the host. What is trained becomes float32, what is
    frozen stays in `dtype`.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*layers, root):
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        # Kept whole from the forward to the backward pass, the root's weights (embedding, head) are gathered once.
        fully_shard(module, mesh=mesh, reshard_after_forward=module is not root, mp_policy=policy)
        # Losses are divided by the denominators of the whole update: gradients are summed.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        setattr(module, _CALL, MethodType(_call, module))
        register_fsdp_forward_method(module, _CALL)


def rest(root: torch.nn.Module) -> None:
    """Free what is left whole after a forward pass that no backward pass follows.

    FSDP2 notes every forward pass until a backward pass has used the notes, to gather ahead in its reverse order.
    """
    if not isinstance(root, FSDPModule):
        return
    root.reshard()
    for module in root.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()  # noqa: SLF001
            state._comm_ctx.post_forward_order.clear()  # noqa: SLF001
            if state._fsdp_param_group is not None:  # noqa: SLF001
                state._fsdp_param_group._post_forward_indices.clear()  # noqa: SLF001


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor, which shares its memory; all of it when it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows(tensor: torch.Tensor) -> tuple[int, int]:
    """Return which rows [start, stop) of a tensor are this rank's. Parts are of equal size but for the last ones."""
    count = tensor.shape[0] if tensor.ndim else 1
    if not isinstance(tensor, DTensor):
        return 0, count
    size = -(-count // tensor.device_mesh.size())
    start = min(count, size * tensor.device_mesh.get_local_rank())
    return start, start + tensor.to_local().shape[0]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, on every rank; all of them call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
