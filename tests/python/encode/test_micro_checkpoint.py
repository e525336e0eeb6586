"""Fresh micro checkpoints in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from native import CORPUS, Native
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

VARIANTS: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": 1, "untied": True},
    {"seed": 1, "dtype": "BF16"},
    {"seed": 1, "vocab": 301, "hidden": 96, "heads": 3},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_it_loads_without_missing_or_unexpected_keys(
    native: Native, tmp_path: Path, processor: Any, options: dict[str, Any]
) -> None:
    directory = tmp_path / "micro"
    native.init(directory, CORPUS, **options)
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(directory), output_loading_info=True)
    assert {k: list(v) for k, v in info.items() if v} == {}
    assert model.dtype == (torch.bfloat16 if options.get("dtype") == "BF16" else torch.float32)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "How many drusen?"},
            ],
        }
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(
        text=[text],
        images=[Image.new("RGB", (84, 84), (200, 90, 30))],
        return_tensors="pt",
    )
    if "vocab" not in options:
        with torch.no_grad():
            logits = model(**inputs).logits.float()
        assert bool(torch.isfinite(logits).all())
        likeliest = float(torch.softmax(logits[0, -1], -1).max())
        assert 0.005 < likeliest < 0.9  # neither flat nor certain


def test_initialisation_is_as_measured(native: Native, tmp_path: Path) -> None:
    directory = tmp_path / "micro"
    native.init(directory, CORPUS, seed=3)
    for name, tensor in load_file(str(directory / "model.safetensors")).items():
        spread = float(tensor.std(correction=0))
        if name.endswith(".bias"):
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        elif tensor.ndim == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            want = 0.3 if "embed_tokens" in name else tensor[0].numel() ** -0.5
            assert abs(spread / want - 1) < 0.05, (name, spread, want)


def test_the_same_seed_gives_the_same_files(native: Native, tmp_path: Path) -> None:
    digests = [native.init(tmp_path / str(i), CORPUS, seed=s) for i, s in enumerate((5, 5, 6))]
    assert digests[0] == digests[1] != digests[2]
    for path in sorted((tmp_path / "0").iterdir()):
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes(), path.name


def test_special_ids_stand_where_engines_look(model: Path, reference: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    generation = json.loads((model / "generation_config.json").read_text())
    ids = reference.convert_tokens_to_ids
    assert config["image_token_id"] == ids("<|image_pad|>")
    assert config["video_token_id"] == ids("<|video_pad|>")
    assert config["vision_start_token_id"] == ids("<|vision_start|>")
    assert config["vision_end_token_id"] == ids("<|vision_end|>")
    assert generation["eos_token_id"] == [ids("<|im_end|>"), ids("<|endoftext|>")]
    assert config["vocab_size"] == len(reference)
