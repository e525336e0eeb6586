"""Conversations with images to prompt ids, against transformers' processor, and target texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import Native, NativeError
from PIL import Image
from test_native_images import picture, size
from test_native_tokenizer import texts


def conversation(random: np.random.Generator, folder: Path, number: int) -> list[dict[str, Any]]:
    """A random conversation of one to four turns with up to three images."""
    roles = ["system", "user", "assistant", "user"][int(random.integers(0, 2)) :]
    words = iter(t.replace("<|image_pad|>", "") for t in texts(random, 40))
    messages: list[dict[str, Any]] = []
    for turn, role in enumerate(roles[: int(random.integers(1, len(roles) + 1))]):
        content: list[dict[str, Any]] = [{"type": "text", "text": next(words)}]
        if role == "user":
            for i in range(int(random.integers(0, 4))):
                path = folder / f"{number}-{turn}-{i}.png"
                picture(random, *size(random, 20, 300)).save(path)
                content.insert(
                    int(random.integers(0, len(content) + 1)),
                    {"type": "image", "image": str(path)},
                )
            content.append({"type": "text", "text": next(words)})
        messages.append({"role": role, "content": content})
    return messages


def test_prompts_have_the_same_ids(
    native: Native,
    model: Path,
    processor: Any,
    tmp_path: Path,
    random: np.random.Generator,
) -> None:
    widest = 0
    for number in range(120):
        messages = conversation(random, tmp_path, number)
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        paths = [part["image"] for m in messages for part in m["content"] if "image" in part]
        images = [Image.open(p) for p in paths]
        want = processor(text=[text], images=images or None)["input_ids"][0]
        assert native.prompt(model, messages) == list(want), messages
        widest = max(widest, len(images))
    assert widest >= 3


def test_a_response_ends_its_turn(native: Native, model: Path, reference: Any) -> None:
    end = reference.convert_tokens_to_ids("<|im_end|>")
    for text in ("", "<think>three</think><answer>C</answer>", "眼底 👩\u200d⚕️"):
        assert native.response(model, text) == [
            *reference.encode(text, add_special_tokens=False),
            end,
        ]


def test_pads_in_the_text_are_refused(native: Native, model: Path) -> None:
    with pytest.raises(NativeError, match="prompt has 1 image pads for 0 images"):
        native.prompt(
            model,
            [{"role": "user", "content": [{"type": "text", "text": "<|image_pad|>"}]}],
        )


def test_the_published_template_means_the_same(native: Native, model: Path, processor: Any) -> None:
    # What Qwen2.5-VL's documentation shows for one image and a question.
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Describe this image.<|im_end|>\n<|im_start|>assistant\n"
    )
