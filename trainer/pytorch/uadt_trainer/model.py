"""A transformers vision-language model, run on packed rows.

The model's own classes hold the weights and run the layers; this module feeds
them packed embeddings, positions and attention plans, and freezes parts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from .layers import Stack, run_text
from .logprobs import token_logprobs
from .lora import Adapters, Base, LoRAOptions, plain_names
from .packing import Packed
from .sharding import cut, rest, through
from .vision import Tower
from .weights import CheckpointError

QWEN = "qwen2_5_vl"
INTERN = "internvl"


class ArchitectureError(Exception):
    """The checkpoint is of a family that this trainer does not train."""


@dataclass(frozen=True)
class Pixels:
    """Prepared images of a micro-batch."""

    values: torch.Tensor  # Qwen: [patches, 1176]; InternVL: [tiles, 3, H, W]
    grids: torch.Tensor | None  # Qwen: [images, 3] int64; None for InternVL


@dataclass(frozen=True)
class TokenScores:
    """What a forward pass says about each response token, [R] float32, nats."""

    logprobs: torch.Tensor
    entropies: torch.Tensor


class Policy:
    """The model being trained, or a frozen copy of it."""

    def __init__(self, model: PreTrainedModel, device: torch.device, stack: Stack) -> None:
        self.model = model
        self.device = device
        self.dtype: torch.dtype = model.dtype  # that the model computes in
        self.family: str = model.config.model_type
        self._stack = stack
        self._tower = Tower(model.model.visual, stack) if self.family == QWEN else None
        self._frozen: frozenset[str] = frozenset()
        self.adapters: Adapters | None = None

    @staticmethod
    def check(path: Path) -> str:
        """Return the family of a Hugging Face directory; others than Qwen2.5-VL and InternVL are refused."""
        if not (path / "config.json").is_file():
            message = f"{path}: no config.json, so no model"
            raise ArchitectureError(message)
        family = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if family not in (QWEN, INTERN):
            message = f"{path}: architecture {family} is neither {QWEN} nor {INTERN}"
            raise ArchitectureError(message)
        return family

    @classmethod
    def load(
        cls, path: Path, device: torch.device, dtype: torch.dtype, checkpointing: bool = False, sharded: bool = False
    ) -> Policy:
        """Open a Hugging Face directory. On a GPU its layers are compiled.

        One that is to be sharded stays on the host until `shard` is called.
        """
        family = cls.check(path)
        model = _open(path, dtype)
        if not sharded:
            model.to(device)
        model.train()
        if checkpointing and family == INTERN:
            model.model.vision_tower.gradient_checkpointing_enable({"use_reentrant": False})
        return cls(model, device, Stack(compiled=device.type == "cuda", checkpointing=checkpointing))

    @property
    def image_token(self) -> int:
        """Id of the pad that image features replace."""
        return int(self.model.config.image_token_id)

    @property
    def head(self) -> torch.Tensor:
        """Weight of the output head [V, D]."""
        return self.model.lm_head.weight

    def part_of(self, name: str) -> str:
        """Which freezable part a parameter belongs to: vision, projector or language."""
        if "visual.merger" in name or "multi_modal_projector" in name:
            return "projector"
        if "visual." in name or "vision_tower" in name:
            return "vision"
        return "language"

    def freeze(self, parts: Sequence[str]) -> None:
        """Stop training the given parts. Vision that needs no gradient runs without a graph."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.part_of(name) not in parts)
        self._frozen = frozenset(parts)

    def shard(self) -> None:
        """Cut the weights over all ranks, each of which calls this once it is settled what is frozen."""
        inner = self.model.model
        blocks = inner.visual.blocks if self.family == QWEN else inner.vision_tower.encoder.layer
        cut(self.model, (*blocks, *inner.language_model.layers), self.device, self.dtype)

    def adapt(self, options: LoRAOptions, base: Base) -> None:
        """Freeze all weights and add adapters, which are trained instead."""
        self.freeze(("vision", "projector", "language"))
        self.adapters = Adapters(self.model, options, base)

    def without_adapters(self) -> Policy:
        """Return the policy of the base: the same weights, and no copy of them."""
        base = copy.copy(self)
        base.adapters = None
        return base

    def prompt_positions(self, prompt: np.ndarray, grids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the rotary positions [3, P] of a prompt with images of the given grids."""
        if self.family != QWEN:
            return np.broadcast_to(np.arange(len(prompt)), (3, len(prompt)))
        return rotary_positions(prompt, grids, self.image_token, self.model.config.vision_config.spatial_merge_size)

    def image_tokens(self, pixels: Pixels | None) -> int:
        """Return how many tokens the images take in a prompt, by the model's own rule."""
        if pixels is None:
            return 0
        config = self.model.config
        if self.family == QWEN:
            assert pixels.grids is not None
            return int(pixels.grids.prod(dim=1).sum()) // config.vision_config.spatial_merge_size**2
        return int(pixels.values.shape[0]) * int(config.image_seq_length)

    def image_features(self, pixels: Pixels) -> torch.Tensor:
        """Return the features [I, D] of all images of a micro-batch in one call.

        What is frozen, and nothing before it trained, builds no graph.
        """
        values = pixels.values.to(self.device, self.dtype)
        grad = torch.is_grad_enabled()
        if self._tower is None:
            with torch.set_grad_enabled(grad and not {"vision", "projector"} <= self._frozen):
                features = self.model.model.get_image_features(pixel_values=values)
                features = getattr(features, "pooler_output", features)
                return features.reshape(-1, features.shape[-1])
        assert pixels.grids is not None
        grids = [(int(t), int(h), int(w)) for t, h, w in pixels.grids.tolist()]
        with torch.set_grad_enabled(grad and "vision" not in self._frozen):
            states = self._tower.patches(values, grids)
        with torch.set_grad_enabled(grad and not {"vision", "projector"} <= self._frozen):
            return self._tower.merge(states, grids)

    def blank(self) -> Pixels:
        """Return the smallest image there is, for a turn in which only other ranks have images."""
        vision = self.model.config.vision_config
        if self.family != QWEN:
            return Pixels(torch.zeros(1, 3, *vision.image_size, device=self.device), None)
        merge = vision.spatial_merge_size
        values = torch.zeros(merge**2, 3 * vision.temporal_patch_size * vision.patch_size**2, device=self.device)
        return Pixels(values, torch.tensor([[1, merge, merge]]))

    def score(
        self,
        packed: Packed,
        pixels: Pixels | None,
        temperature: float,
        banned: tuple[int, ...],
        blank: Pixels | None = None,
    ) -> TokenScores:
        """Run a packed row and return log-probability and entropy of every response token.

        A blank image goes through the vision tower and changes nothing: the gradient is 0.
        """
        out = through(self.model, lambda _: self._score(packed, pixels, temperature, banned, blank))
        if not torch.is_grad_enabled():
            rest(self.model)
        return TokenScores(*out)

    def _score(
        self,
        packed: Packed,
        pixels: Pixels | None,
        temperature: float,
        banned: tuple[int, ...],
        blank: Pixels | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = self.model.model.language_model
        embeds = text.get_input_embeddings()(packed.tokens)
        if pixels is not None:
            features = self.image_features(pixels).to(embeds.dtype)
            if features.shape[0] != packed.image_slots.numel():
                message = f"{features.shape[0]} image features for {packed.image_slots.numel()} image tokens"
                raise ValueError(message)
            embeds = embeds.index_copy(0, packed.image_slots, features)
        if blank is not None:
            embeds = embeds + 0 * self.image_features(blank).to(embeds.dtype).sum()
        positions = packed.positions[:, None] if self.family == QWEN else packed.positions[:1]
        hidden = run_text(text, self._stack, embeds, positions, packed.plan, self.adapters is not None)
        states = hidden.index_select(0, packed.predictors)
        return token_logprobs(states, self.head, packed.targets, temperature, banned)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights by the model's own names, a tied head and adapters left out."""
        tensors = plain_names(self.model.state_dict())
        if self.model.config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        return tensors


def _open(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Open a directory whose weights are those of its config; transformers would fill up what is missing at random."""
    model, found = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,  # others are pickles
        ignore_mismatched_sizes=True,  # so that they are named
        output_loading_info=True,
    )
    mismatched = {str(m[0]) if isinstance(m, tuple) else str(m) for m in found["mismatched_keys"]}
    problems = [
        f"{what} {', '.join(sorted(names)[:5])}"
        for what, names in (
            ("lacks", found["missing_keys"]),
            ("has another shape of", mismatched),
            ("has what config.json does not describe:", found["unexpected_keys"]),
        )
        if names
    ]
    if problems:
        message = f"weights of {path} are of another architecture than its config.json: it {'; it '.join(problems)}"
        raise CheckpointError(message)
    return model


def rotary_positions(prompt: np.ndarray, grids: Sequence[Sequence[int]], image_token: int, merge: int) -> np.ndarray:
    """Return time, height and width [3, P] of each prompt token, as Qwen2.5-VL has them.

    Text goes on by one; an image begins at the next position, its tokens are at their row and column
    from there, and what follows it begins after the largest of them.
    """
    out = np.empty((3, len(prompt)), dtype=np.int64)
    at, position = 0, 0
    for t, h, w in grids:
        begin = at + int(np.argmax(prompt[at:] == image_token))
        text = begin - at
        out[:, at:begin] = position + np.arange(text)
        position += text
        shape = (t, h // merge, w // merge)
        count = int(np.prod(shape))
        out[:, begin : begin + count] = position + np.indices(shape).reshape(3, -1)
        position += max(shape)
        at = begin + count
    out[:, at:] = position + np.arange(len(prompt) - at)
    return out
