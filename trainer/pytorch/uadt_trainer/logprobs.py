"""Log-probabilities and entropies of response tokens without full logits.

The vocabulary is 151,936 words: float32 logits of 4,096 tokens take 2.5 GB.
Logits are made chunk by chunk, reduced to two numbers a token, and made again
in the backward pass.
"""

from __future__ import annotations

import torch

CHUNK = 1024  # tokens of a chunk; 0.6 GB of float32 logits at 151,936 words


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, temperature: float, banned: torch.Tensor | None
) -> torch.Tensor:
    """Return float32 logits [C, V] over the temperature, banned ids at the least finite value."""
    logits = (hidden @ weight.t()).float()
    if temperature != 1.0:
        logits.div_(temperature)
    if banned is not None:
        logits.index_fill_(1, banned, torch.finfo(torch.float32).min)
    return logits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, banned):  # noqa: ANN001, ANN205
        """Hidden [R, D], weight [V, D], targets [R] -> log-probabilities [R], entropies [R]."""
        count = targets.numel()
        logprobs = torch.empty(count, dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(logprobs)
        normalisers = torch.empty_like(logprobs)
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            logits = _logits(hidden[start:stop], weight, temperature, banned)
            # logsumexp subtracts the maximum first, so that exp never overflows. The entropy is
            # sum(p*(lse - z)): all terms are at least 0, so nothing cancels, and where p has
            # underflowed to 0 the other factor is finite.
            lse = torch.logsumexp(logits, dim=1)
            picked = logits.gather(1, targets[start:stop, None]).squeeze(1)
            logprobs[start:stop] = picked - lse
            logits.sub_(lse[:, None])
            entropies[start:stop] = -(torch.exp(logits) * logits).sum(dim=1)
            normalisers[start:stop] = lse
        ctx.save_for_backward(hidden, weight, targets, normalisers, entropies)
        ctx.temperature, ctx.banned = temperature, banned
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropies):  # noqa: ANN001, ANN205
        """Make the logits again; d lp = onehot - p, d H = -p*(log p + H)."""
        hidden, weight, targets, normalisers, entropies = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, targets.numel(), CHUNK):
            stop = min(start + CHUNK, targets.numel())
            logp = _logits(hidden[start:stop], weight, ctx.temperature, ctx.banned)
            logp.sub_(normalisers[start:stop, None])
            p = torch.exp(logp)
            g = grad_logprobs[start:stop, None]
            d = -g * p
            if grad_entropies is not None:
                # Where p is 0 the product with log p is 0 too: clamp keeps 0 * -inf out.
                d.sub_(grad_entropies[start:stop, None] * p * (logp.clamp_min_(-1e4) + entropies[start:stop, None]))
            d.scatter_add_(1, targets[start:stop, None], g)
            d = d.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start:stop] = d @ weight
            if grad_weight is not None:
                grad_weight.addmm_(d.t(), hidden[start:stop])
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
    ids = torch.tensor(banned, dtype=torch.int64, device=hidden.device) if banned else None
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, ids)
