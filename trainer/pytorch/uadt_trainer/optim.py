"""AdamW with float32 master weights and decoupled weight decay.

The moments and the master weights are float32 whatever the model's type: a
learning rate of 1e-6 is below the resolution of bfloat16 weights. A float32
parameter is its own master. Of one that is cut over ranks each has its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from .sharding import own, rows
from .weights import CheckpointError, Rows


@dataclass(frozen=True)
class AdamWOptions:
    """Constants of AdamW."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0


class AdamW:
    """Updates named parameters in place, tensor by tensor, so that peak memory stays that of one tensor."""

    def __init__(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], options: AdamWOptions) -> None:
        self.options = options
        self.parameters = [(name, p) for name, p in parameters if p.requires_grad]
        self.count = 0
        self._copies = {n: p.detach().float() for n, p in self.parameters if p.dtype != torch.float32}
        self.first = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self.parameters}
        self.second = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self.parameters}

    @property
    def master(self) -> dict[str, torch.Tensor]:
        """Return the weights that updates go to."""
        return {n: self._copies.get(n, p.detach()) for n, p in self.parameters}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for _, p in self.parameters:
            p.grad = None

    def gradients(self) -> list[torch.Tensor]:
        """Return all gradients in the order of the parameters.

        A part that no micro-batch reached has gradient 0, on every rank: its moments and decay go on alike.
        """
        for _, p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for _, p in self.parameters]

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of all gradients, of those that are cut only of this rank's rows, accumulated in float32."""
        grads = [own(p.grad) for _, p in self.parameters if p.grad is not None]
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads]
        if not norms:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack(norms))

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float) -> None:
        """Apply one update; gradients are multiplied by scale (clipping) first."""
        o = self.options
        self.count += 1
        correction1 = 1 - o.beta1**self.count
        correction2 = 1 - o.beta2**self.count
        masters = self.master
        for name, p in self.parameters:
            if p.grad is None:
                continue
            gradient = own(p.grad).float()
            if scale != 1.0:
                gradient = gradient * scale
            first, second, master = (own(t) for t in (self.first[name], self.second[name], masters[name]))
            first.lerp_(gradient, 1 - o.beta1)
            second.mul_(o.beta2).addcmul_(gradient, gradient, value=1 - o.beta2)
            if o.weight_decay and decays(name, p):
                master.mul_(1 - learning_rate * o.weight_decay)
            denominator = (second / correction2).sqrt_().add_(o.epsilon)
            master.addcdiv_(first, denominator, value=-learning_rate / correction1)
            if name in self._copies:
                p.copy_(master)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all state by name, for a safetensors file; what is cut is not put together."""
        out = {"count": torch.tensor([self.count], dtype=torch.int64)}
        for kind, tensors in (("master", self.master), ("first", self.first), ("second", self.second)):
            out.update({f"{kind}.{name}": t for name, t in tensors.items()})
        return out

    @torch.no_grad()
    def restore(self, state: Mapping[str, Rows]) -> None:
        """Take over what state() returned, put together; a tensor that is missing or of another shape is named."""
        self.count = int(state["count"][0:1])
        for kind, tensors in (("master", self.master), ("first", self.first), ("second", self.second)):
            for name, target in tensors.items():
                key = f"{kind}.{name}"
                if key not in state:
                    message = f"optimizer state lacks {key}"
                    raise CheckpointError(message)
                if tuple(state[key].shape) != tuple(target.shape):
                    message = f"optimizer state {key} is {tuple(state[key].shape)}, want {tuple(target.shape)}"
                    raise CheckpointError(message)
                start, stop = rows(target)
                own(target).copy_(state[key][start:stop])
        for name, p in self.parameters:
            if name in self._copies:
                p.copy_(self._copies[name])


def decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Biases and norm weights are vectors and never decay."""
    return parameter.ndim > 1 and not name.endswith("bias")
