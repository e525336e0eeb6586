"""LoRA: adapters on projections of the language model, in place of training its weights.

peft makes and names the adapters, so that its directories are ours; layers.py
computes with them: y = W x + alpha / rank * B (A x), without dropout. Everything
else keeps its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .weights import CheckpointError, digest, read_metadata, stored_digest

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = "default"  # peft's name of the only adapter
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoRAOptions:
    """What adapters a stage trains."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS
    seed: int = 0  # of A; B begins at 0

    @property
    def scale(self) -> float:
        """What B (A x) is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Base:
    """The weights that adapters are added to."""

    path: Path
    digest: str


class Adapters:
    """The adapters of one model, whose other weights are frozen."""

    def __init__(self, model: torch.nn.Module, options: LoRAOptions, base: Base) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            message = "trainer.lora_rank needs the package peft: pip install 'uadt-trainer[lora]'"
            raise CheckpointError(message) from error
        unknown = sorted(set(options.targets) - set(PROJECTIONS))
        if unknown or not options.targets or options.rank < 1:
            message = f"adapters of rank {options.rank} on {list(options.targets)}: want some of {list(PROJECTIONS)}"
            raise CheckpointError(message)
        self.options, self.base = options, base
        # Towers have projections of the same names, so the pattern says where.
        self._config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            target_modules=rf".*language_model\..*\.({'|'.join(options.targets)})",
            base_model_name_or_path=str(base.path),
            inference_mode=True,
        )
        with torch.random.fork_rng(devices=[]):  # every rank makes the same A
            torch.manual_seed(options.seed)
            inject_adapter_in_model(self._config, model)
        self._model = model
        self._modules = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_adapter(name))

    def merge(self, name: str, weight: torch.Tensor, master: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weight of a name of plain_names with its adapter, if any, added.

        The float32 master weights of A and B are multiplied and added in float32, and the sum is rounded once.
        """
        module = name.removesuffix(".weight")
        if module not in self._modules or module == name:
            return weight
        a, b = (master[f"{module}.lora_{x}.{ADAPTER}.weight"] for x in "AB")
        return (weight.float() + self.options.scale * (b @ a)).to(weight.dtype)

    def snapshot(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return copies of A and B under the names of a peft directory."""
        out = {}
        for name, module in self._modules.items():
            for x, layers in (("A", module.lora_A), ("B", module.lora_B)):
                weight = layers[ADAPTER].weight
                out[f"base_model.model.{name}.lora_{x}.weight"] = weight.detach().to(device, copy=True)
        return out

    def config(self) -> dict[str, bytes]:
        """Return the side files of a peft directory."""
        fields = {k: sorted(v) if isinstance(v, set) else v for k, v in self._config.to_dict().items()}
        return {CONFIG: (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()}

    def digest(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Return the digest of the policy that a snapshot makes of the base."""
        text = f"{self.base.digest}\n{self.options.scale!r}\n{digest(tensors)}\n"
        return hashlib.sha256(text.encode()).hexdigest()


def is_adapter(name: str) -> bool:
    """Say whether a parameter is part of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's own weights under the names that they have without adapters."""
    return {n.replace(".base_layer.", "."): t for n, t in tensors.items() if not is_adapter(n)}


def find_base(model: Path, resume: Path | None, known: Mapping[Path, str]) -> Base:
    """Return what a stage's adapters are added to; a checkpoint of adapters on another base is refused.

    known has digests that were computed before.
    """
    found = known.get(model) or stored_digest(model)
    if resume is not None and (want := checkpoint_base(resume)) != found:
        message = f"{resume} has adapters on weights {want or 'that it does not name'}, {model} has {found}"
        raise CheckpointError(message)
    return Base(model, found)


def checkpoint_base(resume: Path) -> str:
    """Return the digest of the base of a checkpoint's adapters; empty if its weights were trained themselves."""
    return read_metadata(resume / "optimizer.safetensors").get("base", "")
