"""Variable-length attention over the segments of a packed row.

On CUDA, in bfloat16, torch's variable-length flash kernel; elsewhere scaled dot
products segment by segment.
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
    return _segments(query, key, value, (cu_q.tolist(), cu_k.tolist()), causal)


def _segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: tuple[list[int], list[int]],
    causal: bool,
) -> torch.Tensor:
    """Dense fall-back: one scaled dot product for each segment."""
    cu_q, cu_k = bounds
    out = []
    for s in range(len(cu_q) - 1):
        q = query[cu_q[s] : cu_q[s + 1]].transpose(0, 1)
        k = key[cu_k[s] : cu_k[s + 1]].transpose(0, 1)
        v = value[cu_k[s] : cu_k[s + 1]].transpose(0, 1)
        mask = None
        if causal:
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
            mask = mask.tril(diagonal=k.shape[1] - q.shape[1])
        heads = q.shape[0] != k.shape[0]
        out.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=heads).transpose(0, 1))
    return torch.cat(out)
