"""Text to ids and back, against the Rust tokenizer that transformers uses."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from native import CORPUS, Native

PIECES = [
    *" \t\n\r\v\f",
    "  ",
    "\r\n",
    "\n\n",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u0085",
    "\u200b",
    *"'sS tTrRvVlLmMdDeE",
    "'s",
    "'LL",
    "'ve",
    "'Re",
    "'\u017f",
    "\u2019s",
    *'aZé0٣½Ⅷ.,;:!?-_/\\<>|{}()[]@#$%^&*+=~`"',
    "e\u0301",
    "\u1100\u1161\u11a8",
    "각",
    "眼底",
    "黄斑",
    "Å",
    "\u212b",
    "ﬁ",
    "👩\u200d⚕️",
    "🇩🇪",
    "\U0001f600",
    "ͅ",
    "\u0344",
    "ẛ̣",
    "drusen",
    " macula",
    "<think>",
    "</answer>",
    "<|im_end|>",
    "<|im_start|>",
    "<|image_pad|>",
    "<tool_call>",
    "<|",
    "|>",
    "<|im_end",
    "\ufffd",
    "\x00",
    "\U0010ffff",
]


def texts(random: np.random.Generator, count: int) -> list[str]:
    """Random strings of awkward pieces and of any characters."""
    out = []
    for i in range(count):
        length = int(random.integers(1, 24))
        if i % 3:
            out.append("".join(PIECES[int(k)] for k in random.integers(0, len(PIECES), length)))
        else:
            limit = [0x80, 0x3000, 0x11_0000][i // 3 % 3]
            codes = (int(c) for c in random.integers(0, limit, length))
            out.append("".join(chr(c) for c in codes if not 0xD800 <= c <= 0xDFFF))
    return out


def test_texts_have_the_same_ids(native: Native, model: Path, reference: Any, random: np.random.Generator) -> None:
    cases = ["", " ", "\n", *CORPUS, *texts(random, 6000)]
    wrong = [t for t in cases if native.encode(model, t) != reference.encode(t, add_special_tokens=False)]
    assert wrong == []


def probe(code: int) -> str:
    """A character between others, alone and decomposed: cut differently by every class, moved by every mark."""
    c = chr(code)
    return f"a{c}\u0301\u0323 {c}b x\u0301{c}\u0334 {unicodedata.normalize('NFD', c)}"


def test_every_character_is_cut_and_normalised_alike(native: Native, model: Path, reference: Any) -> None:
    backend = reference.backend_tokenizer
    # Planes 4 to 13, 15 and 16 hold no characters: every 101st code point of them.
    codes = [
        c
        for c in range(sys.maxunicode + 1)
        if not 0xD800 <= c <= 0xDFFF and (c < 0x40000 or 0xE0000 <= c < 0xE0200 or c % 101 == 0)
    ]
    wrong = []
    for start in range(0, len(codes), 512):
        block = codes[start : start + 512]
        text = "".join(map(probe, block))
        if native.encode(model, text) == backend.encode(text).ids:
            continue
        wrong += [hex(c) for c in block if native.encode(model, probe(c)) != backend.encode(probe(c)).ids]
    assert wrong == []


def test_long_words_are_merged_alike(native: Native, model: Path, reference: Any, random: np.random.Generator) -> None:
    letters = sorted(set("".join(CORPUS)) - set(" .,?<>/"))
    for length in (47, 48, 49, 300, 5000):
        text = "".join(letters[int(k)] for k in random.integers(0, len(letters), length))
        text += "drusen" * length
        assert native.encode(model, text) == reference.encode(text, add_special_tokens=False)


def test_ids_have_the_same_text(native: Native, model: Path, reference: Any, random: np.random.Generator) -> None:
    for i in range(3000):
        ids = [int(k) for k in random.integers(0, len(reference), int(random.integers(0, 16)))]
        if i % 2:  # bytes, so that broken UTF-8 is frequent
            ids = [k % 256 for k in ids]
        skip = i % 4 < 2
        want = reference.decode(ids, skip_special_tokens=skip)
        assert native.decode(model, ids, skip=skip) == want, ids
        assert native.decode(model, ids, skip=skip, stream=True) == want, ids


def test_the_vocabulary_is_the_same(native: Native, model: Path, reference: Any) -> None:
    tokens = reference.get_vocab()
    assert sorted(tokens.values()) == list(range(len(tokens)))
    assert len(tokens) <= 512
    words = [w for w in ("drusen", "three", "quadrant") if len(native.encode(model, " " + w)) == 1]
    assert words == ["drusen", "three", "quadrant"]
