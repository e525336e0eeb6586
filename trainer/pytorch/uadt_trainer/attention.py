"""Variable-length attention over the segments of a packed row.

On CUDA, in bfloat16, torch's variable-length flash kernel; elsewhere one masked
scaled dot product over padded segments.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    longest: tuple[int, int],
    causal: bool,
) -> torch.Tensor:
    """Query [Nq, H, D], key and value [Nk, Hkv, D] -> [Nq, H, D]; cu_q and cu_k [S+1] int32 bound the segments.

    Causal is aligned at the end: the last query of a segment sees all of its keys. `longest` is the
    largest number of queries and keys of a segment. Hkv divides H.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        window = (-1, 0) if causal else (-1, -1)
        return varlen_attn(query, key, value, cu_q, cu_k, *longest, window_size=window)
    return _padded(query, key, value, (cu_q, cu_k), longest, causal)


def _padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    causal: bool,
) -> torch.Tensor:
    """Fall-back without a variable-length kernel: one masked product over segments padded to the longest."""
    (q_at, q_live), (k_at, k_live) = (_rows(cu, n) for cu, n in zip(bounds, longest, strict=True))
    mask = k_live[:, None, :]  # [S, 1, K]; every segment has a key, so that no row of it is empty
    if causal:
        ahead = (bounds[1].diff() - bounds[0].diff())[:, None, None]
        steps = torch.arange(longest[1], device=query.device)
        mask = mask & (steps <= torch.arange(longest[0], device=query.device)[:, None] + ahead)
    q, k, v = (x[at].transpose(1, 2) for x, at in ((query, q_at), (key, k_at), (value, k_at)))
    heads = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=heads)
    return out.transpose(1, 2)[q_live]


def _rows(cu: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Segment bounds [S+1] -> row indices [S, longest], the padding pointing at row 0, and which are real."""
    steps = torch.arange(longest, device=cu.device)
    live = steps < cu.diff()[:, None]
    return torch.where(live, cu[:-1, None] + steps, 0), live
