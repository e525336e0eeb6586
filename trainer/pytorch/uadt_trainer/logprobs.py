"""Log-probabilities and entropies of response tokens without full logits.

The vocabulary is 151,936 words: float32 logits of 4,096 tokens take 2.5 GB.
Logits are made chunk by chunk in the model's type, reduced in float32 to a few
numbers a token, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch

CHUNK = 2048  # tokens of a chunk; 0.6 GB of bfloat16 logits at 151,936 words
# What a banned id's logit becomes: exp gives exactly 0, and 0 times it is still 0 where -inf would give NaN.
BANNED = -1e30


def _reduce(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    """Logits [C, V], targets [C] -> log-probability, entropy and normaliser, [C] float32."""
    z = logits.float() / temperature
    # logsumexp subtracts the maximum first, so that exp never overflows. The entropy is
    # sum(p*(lse - z)): all terms are at least 0, so nothing cancels, and where p has
    # underflowed to 0 the other factor is finite.
    lse = torch.logsumexp(z, dim=1)
    picked = z.gather(1, targets[:, None]).squeeze(1)
    below = z - lse[:, None]
    return picked - lse, -(torch.exp(below) * below).sum(dim=1), lse


def _gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    grad_logprobs: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return d loss / d logits [C, V] in the logits' type: d lp = onehot - p."""
    p = torch.exp(logits.float() / temperature - lse[:, None])
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    return ((hit.float() - p) * (grad_logprobs[:, None] / temperature)).to(logits.dtype)


def _gradient_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    grad_logprobs: torch.Tensor,
    temperature: float,
    entropies: torch.Tensor,
    grad_entropies: torch.Tensor,
) -> torch.Tensor:
    """Return the same with d H = -p*(log p + H) added."""
    logp = logits.float() / temperature - lse[:, None]
    p = torch.exp(logp)
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    d = (hit.float() - p) * grad_logprobs[:, None] - p * (logp + entropies[:, None]) * grad_entropies[:, None]
    return (d / temperature).to(logits.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Fuse on a GPU, where each pass over the logits costs more than the arithmetic."""
    return (_compiled(function) if arguments[0].is_cuda else function)(*arguments)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, banned: torch.Tensor | None) -> torch.Tensor:
    logits = hidden @ weight.t()
    if banned is not None:
        logits.index_fill_(1, banned, BANNED)
    return logits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, banned):  # noqa: ANN001, ANN205
        """Hidden [R, D], weight [V, D], targets [R] -> log-probabilities [R], entropies [R]."""
        count = targets.numel()
        rows = torch.empty(3, count, dtype=torch.float32, device=hidden.device)
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            logits = _logits(hidden[start:stop], weight, banned)
            for row, values in zip(rows, _run(_reduce, logits, targets[start:stop], temperature), strict=True):
                row[start:stop] = values
        logprobs, entropies, normalisers = rows.unbind()
        ctx.save_for_backward(hidden, weight, targets, normalisers, entropies)
        ctx.temperature, ctx.banned = temperature, banned
        ctx.set_materialize_grads(False)
        return logprobs.clone(), entropies.clone()

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropies):  # noqa: ANN001, ANN205
        """Make the logits again, and from them the gradients, chunk by chunk."""
        hidden, weight, targets, normalisers, entropies = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normalisers)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, targets.numel(), CHUNK):
            part = slice(start, min(start + CHUNK, targets.numel()))
            logits = _logits(hidden[part], weight, ctx.banned)
            common = (logits, targets[part], normalisers[part], grad_logprobs[part], ctx.temperature)
            if grad_entropies is None:
                d = _run(_gradient, *common)
            else:
                d = _run(_gradient_entropy, *common, entropies[part], grad_entropies[part])
            if grad_hidden is not None:
                grad_hidden[part] = d @ weight
            if grad_weight is not None:
                grad_weight.addmm_(d.t(), hidden[part])
        return grad_hidden, grad_weight, None, None, None


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability [R] and entropy [R], nats, of each target token.

    hidden [R, D] are the states that predict, weight [V, D] is the output head.
    """
    ids = _on_device(banned, hidden.device) if banned else None
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, ids)


@lru_cache(maxsize=16)
def _on_device(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Copy ids once: a copy to a GPU waits for all that is queued there, and this one is wanted in every row."""
    return torch.tensor(ids, dtype=torch.int64, device=device)
