"""Attention for packed rows, registered with transformers under two names.

`uadt_packed` is for language models: it follows an AttentionPlan that the
caller passes through. `uadt_flash_vision` is for vision towers: it follows the
towers' own cu_seqlens; transformers takes its variable-length branch only for
names that contain "flash". On CUDA both run torch's variable-length flash
kernel; elsewhere they run scaled dot products segment by segment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from .packing import AttentionPlan

PACKED = "uadt_packed"
VISION = "uadt_flash_vision"


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[1, H, N, D] -> [N, H, D]."""
    return x.squeeze(0).transpose(0, 1)


def _flash_possible(query: torch.Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0


def _segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scale: float, causal: bool
) -> torch.Tensor:
    """Dense fall-back: one scaled dot product for each segment. Rows are [N, H, D]."""
    out = torch.empty_like(query)
    cu_q, cu_k = plan.cu_q.tolist(), plan.cu_k.tolist()
    repeats = query.shape[1] // key.shape[1]
    for s in range(len(cu_q) - 1):
        q = query[cu_q[s] : cu_q[s + 1]].transpose(0, 1)
        k = key[cu_k[s] : cu_k[s + 1]].transpose(0, 1).repeat_interleave(repeats, dim=0)
        v = value[cu_k[s] : cu_k[s + 1]].transpose(0, 1).repeat_interleave(repeats, dim=0)
        mask = None
        if causal:
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
            mask = mask.tril(diagonal=k.shape[1] - q.shape[1])
        out[cu_q[s] : cu_q[s + 1]] = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(0, 1)
    return out


def _variable(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scale: float, causal: bool
) -> torch.Tensor:
    if not _flash_possible(query):
        return _segments(query, key, value, plan, scale, causal)
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(query, key, value, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, scale=scale, window_size=window)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    uadt_plan: AttentionPlan,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, H, N, D], key and value [1, Hkv, N, D] -> [1, N, H, D]."""
    del module, attention_mask
    keys = _rows(key).index_select(0, uadt_plan.key_index)
    values = _rows(value).index_select(0, uadt_plan.key_index)
    return _variable(_rows(query), keys, values, uadt_plan, scaling, True).unsqueeze(0), None


def vision_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int | torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value [1, H, N, D] -> [1, N, H, D], each window or image by itself."""
    del module, attention_mask
    cu = cu_seq_lens_q.to(torch.int32)
    longest = int(max_length_q)
    plan = AttentionPlan(cu_q=cu, cu_k=cu, key_index=cu, max_q=longest, max_k=longest)
    return _variable(_rows(query), _rows(key), _rows(value), plan, scaling, False).unsqueeze(0), None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(VISION, vision_attention)
