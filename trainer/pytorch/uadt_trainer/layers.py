"""The layers of Qwen2 text models and of Qwen2.5-VL's vision tower, as functions of their weights.

transformers' modules hold the weights; these functions compute with them on
rows without a batch axis. One function serves all layers of a stack, so that
compiling it once fuses norms, rotations, gates and residuals of every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch.nn.functional import linear, silu
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from .attention import attend
from .lora import ADAPTER
from .packing import AttentionPlan
from .sharding import through

Weights = tuple[torch.Tensor, ...]
Adapter = tuple[torch.Tensor, torch.Tensor, float] | None  # A [r, in], B [out, r], scale
UNADAPTED: tuple[Adapter, ...] = (None,) * 7


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """X [N, D]; the mean of squares is taken in float32."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """X [N, H, D] by the angles of cos and sin [N, 1, D], halves paired; the first half of sin is negated.

    Swapping the halves by a flip compiles to plain indexing, where their concatenation makes a kernel
    that reads both and masks one.
    """
    return x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin


def signed(sin: torch.Tensor) -> torch.Tensor:
    """Negate the first half of the last axis, as rotate wants it."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, adapter: Adapter) -> torch.Tensor:
    """X [N, in] -> [N, out]: W x + b, and scale * B (A x) where there is an adapter."""
    y = linear(x, weight, bias)
    if adapter is None:
        return y
    a, b, scale = adapter
    return y + linear(linear(x, a), b) * scale


def text_layer(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    plan: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int],
    eps: float,
    w: Weights,
    adapters: tuple[Adapter, ...] = UNADAPTED,
) -> torch.Tensor:
    """X [N, D] -> [N, D]; cos and signed sin are [N, 1, head]; adapters are of q, k, v, o, gate, up and down."""
    norm1, wq, bq, wk, bk, wv, bv, wo, norm2, gate, up, down = w
    aq, ak, av, ao, a_gate, a_up, a_down = adapters
    cu_q, cu_k, index, max_q, max_k = plan
    head = cos.shape[-1]
    h = rms_norm(x, norm1, eps)
    q = rotate(project(h, wq, bq, aq).unflatten(-1, (-1, head)), cos, sin)
    k = rotate(project(h, wk, bk, ak).unflatten(-1, (-1, head)), cos, sin)
    v = project(h, wv, bv, av).unflatten(-1, (-1, head))
    a = attend(q, k.index_select(0, index), v.index_select(0, index), cu_q, cu_k, (max_q, max_k), True)
    x = x + project(a.flatten(1), wo, None, ao)
    h = rms_norm(x, norm2, eps)
    inner = silu(project(h, gate, None, a_gate)) * project(h, up, None, a_up)
    return x + project(inner, down, None, a_down)


def vision_block(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    segments: tuple[torch.Tensor, int],
    eps: float,
    w: Weights,
) -> torch.Tensor:
    """X [N, D] -> [N, D]; cos and signed sin are [N, 1, head] float32, segments are windows or images."""
    norm1, wqkv, bqkv, wo, bo, norm2, gate, gate_bias, up, up_bias, down, down_bias = w
    cu, longest = segments
    head = cos.shape[-1]
    h = rms_norm(x, norm1, eps)
    q, k, v = linear(h, wqkv, bqkv).unflatten(-1, (3, -1, head)).unbind(1)
    q, k = rotate(q.float(), cos, sin).to(x.dtype), rotate(k.float(), cos, sin).to(x.dtype)
    a = attend(q, k, v.contiguous(), cu, cu, (longest, longest), False)
    x = x + linear(a.flatten(1), wo, bo)
    h = rms_norm(x, norm2, eps)
    return x + linear(silu(linear(h, gate, gate_bias)) * linear(h, up, up_bias), down, down_bias)


@dataclass(frozen=True)
class Stack:
    """How layers are run: compiled or not, activations kept or computed again."""

    compiled: bool
    checkpointing: bool

    def run(self, layer: Callable[..., torch.Tensor], x: torch.Tensor, *arguments: object) -> torch.Tensor:
        """Apply one layer."""
        again = self.checkpointing and torch.is_grad_enabled()
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(x, 0)  # noqa: SLF001
            return _compiled(layer, again)(x, *arguments)
        if again:
            return checkpoint(layer, x, *arguments, use_reentrant=False, preserve_rng_state=False)
        return layer(x, *arguments)


@cache
def _compiled(layer: Callable[..., torch.Tensor], again: bool) -> Callable[..., torch.Tensor]:
    """Compile a layer; `again` computes its activations once more in the backward pass.

    The recomputation is compiled into the backward graph, so that what the gradients do not need (the
    last product) is left out, and the outputs of attention, small and slow to make, are kept.
    """
    # One graph for each of: training and scoring, parts frozen or not, fixed and then any number of tokens.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # noqa: SLF001
    if not again:
        return torch.compile(layer)
    from torch.nn.attention import varlen  # noqa: F401 - registers the operation

    kept = partial(create_selective_checkpoint_contexts, [torch.ops.torch_attn._varlen_attn.default])  # noqa: SLF001

    def checkpointed(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        return checkpoint(layer, x, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=kept)

    return torch.compile(checkpointed)


def run_text(
    text: torch.nn.Module,
    stack: Stack,
    x: torch.Tensor,
    positions: torch.Tensor,
    plan: AttentionPlan,
    adapted: bool = False,
) -> torch.Tensor:
    """Run a Qwen2 or Qwen2.5-VL language model on embeddings [N, D]; positions are [3, 1, N] or [1, N].

    adapted adds its adapters, where it has any.
    """
    cos, sin = (_angles(text, t).unsqueeze(1) for t in text.rotary_emb(x[None], positions))
    sin = signed(sin)
    segments = (plan.cu_q, plan.cu_k, plan.key_index, plan.max_q, plan.max_k)
    if stack.compiled:
        for t in (cos, sin, plan.cu_q, plan.cu_k, plan.key_index):
            torch._dynamo.maybe_mark_dynamic(t, 0)  # noqa: SLF001
    for layer in text.layers:
        x = through(layer, _run_text_layer, stack, adapted, x, cos, sin, segments)
    return rms_norm(x, text.norm.weight, text.norm.variance_epsilon)


def _run_text_layer(
    layer: torch.nn.Module, stack: Stack, adapted: bool, x: torch.Tensor, *arguments: object
) -> torch.Tensor:
    adapters = text_adapters(layer) if adapted else UNADAPTED
    return stack.run(text_layer, x, *arguments, layer.input_layernorm.variance_epsilon, text_weights(layer), adapters)


def _angles(text: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return [N, head] of what a rotary embedding gave.

    [1, N, head]; or [3, 1, N, head] where transformers leaves it to the attention to take time, height
    and width in turn.
    """
    if values.ndim == 3:
        return values[0]
    sections = text.config.rope_parameters["mrope_section"] * 2
    parts = values[:, 0].split(sections, dim=-1)
    return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)


def text_weights(layer: torch.nn.Module) -> Weights:
    """Return the weights that text_layer takes."""
    a, m = layer.self_attn, layer.mlp
    projections = (p for module in (a.q_proj, a.k_proj, a.v_proj) for p in (module.weight, module.bias))
    mlp = (m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight)
    return (
        layer.input_layernorm.weight,
        *projections,
        a.o_proj.weight,
        layer.post_attention_layernorm.weight,
        *mlp,
    )


def text_adapters(layer: torch.nn.Module) -> tuple[Adapter, ...]:
    """Return the adapters that text_layer takes, None for a projection that peft did not touch."""
    a, m = layer.self_attn, layer.mlp
    return tuple(
        (p.lora_A[ADAPTER].weight, p.lora_B[ADAPTER].weight, p.scaling[ADAPTER]) if hasattr(p, "lora_A") else None
        for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)
    )


def block_weights(block: torch.nn.Module) -> Weights:
    """Return the weights that vision_block takes."""
    modules: Sequence[torch.nn.Module] = (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj)
    return (
        block.norm1.weight,
        block.attn.qkv.weight,
        block.attn.qkv.bias,
        block.attn.proj.weight,
        block.attn.proj.bias,
        block.norm2.weight,
        *(p for m in modules for p in (m.weight, m.bias)),
    )
