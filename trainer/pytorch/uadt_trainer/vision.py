"""Qwen2.5-VL's vision tower on the patches of many images in one call.

Where windows lie and which angles patches have depends on the grids alone: it
is worked out on the host once for each combination of grids and kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import linear

from .layers import Stack, block_weights, rms_norm, signed, vision_block
from .sharding import through

KEPT = 64  # layouts of image combinations that are kept
THETA = 10000.0  # base of the tower's rotary angles
EPS = 1e-6  # of its norms

Grid = tuple[int, int, int]  # (t, h, w) in patches


@dataclass(frozen=True)
class Layout:
    """Where everything lies for images of given grids; M merged tokens of 4 patches, N = 4 M."""

    order: torch.Tensor  # [M] int64: merged tokens, window after window
    back: torch.Tensor  # [M] int64: the inverse
    cos: torch.Tensor  # [N, 1, head] float32, in window order
    sin: torch.Tensor  # the first half negated
    windows: tuple[torch.Tensor, int]  # cumulative patches [W+1] int32 and the largest window
    images: tuple[torch.Tensor, int]  # the same of frames


class Tower:
    """Runs the modules of a transformers Qwen2.5-VL vision model."""

    def __init__(self, visual: torch.nn.Module, stack: Stack) -> None:
        self._visual, self._stack = visual, stack
        self._layouts: OrderedDict[tuple[Grid, ...], Layout] = OrderedDict()

    def patches(self, values: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """Values [N, 3*2*14*14] -> states [N, D] in window order."""
        v = self._visual
        layout = self._layout(tuple(grids), values.device)
        unit = v.spatial_merge_size**2
        x = linear(values, v.patch_embed.proj.weight.flatten(1))
        x = x.unflatten(0, (-1, unit)).index_select(0, layout.order).flatten(0, 1)
        for i, block in enumerate(v.blocks):
            segments = layout.images if i in v.fullatt_block_indexes else layout.windows
            x = through(block, self._run_block, x, layout.cos, layout.sin, segments)
        return x

    def _run_block(self, block: torch.nn.Module, x: torch.Tensor, *arguments: object) -> torch.Tensor:
        return self._stack.run(vision_block, x, *arguments, EPS, block_weights(block))

    def merge(self, x: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """States [N, D] in window order -> features [M, D_text] in image order."""
        merger = self._visual.merger
        layout = self._layout(tuple(grids), x.device)
        x = rms_norm(x, merger.ln_q.weight, EPS).unflatten(0, (-1, self._visual.spatial_merge_size**2)).flatten(1)
        return merger.mlp(x).index_select(0, layout.back)

    def _layout(self, grids: tuple[Grid, ...], device: torch.device) -> Layout:
        if grids not in self._layouts:
            config = self._visual.config
            self._layouts[grids] = lay_out(
                grids,
                merge=config.spatial_merge_size,
                window=config.window_size // config.spatial_merge_size // config.patch_size,
                head=config.hidden_size // config.num_heads,
                device=device,
            )
            if len(self._layouts) > KEPT:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(grids)
        return self._layouts[grids]


def lay_out(grids: Sequence[Grid], merge: int, window: int, head: int, device: torch.device) -> Layout:
    """Work out a layout. `window` is the side of a window in merged tokens."""
    order, windows, frames, angles = [], [], [], []
    start = 0
    for t, h, w in grids:
        rows, columns = h // merge, w // merge
        ids = start + np.arange(t * rows * columns).reshape(t, rows, columns)
        for frame in ids:
            frames.append(h * w)
            for top in range(0, rows, window):
                for left in range(0, columns, window):
                    tile = frame[top : top + window, left : left + window].ravel()
                    order.append(tile)
                    windows.append(len(tile) * merge * merge)
        angles.append(_places(t, h, w, merge))
        start += t * rows * columns
    indices = np.concatenate(order)
    # [N, 2] rows and columns of patches, taken to window order by merged token.
    places = np.concatenate(angles).reshape(-1, merge * merge, 2)[indices].reshape(-1, 2)
    frequencies = 1.0 / THETA ** (np.arange(0, head // 2, 2, dtype=np.float32) / np.float32(head // 2))
    half = (places[:, :, None].astype(np.float32) * frequencies.astype(np.float32)).reshape(len(places), -1)
    turned = torch.from_numpy(np.concatenate((half, half), axis=1)).to(device).unsqueeze(1)

    def segments(lengths: list[int]) -> tuple[torch.Tensor, int]:
        return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device), max(lengths)

    return Layout(
        order=torch.from_numpy(indices).to(device),
        back=torch.from_numpy(np.argsort(indices)).to(device),
        cos=turned.cos(),
        sin=signed(turned.sin()),
        windows=segments(windows),
        images=segments(frames),
    )


def _places(t: int, h: int, w: int, merge: int) -> np.ndarray:
    """Row and column of each patch [t*h*w, 2], the patches of a merged token one after the other."""
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    blocks = grid.reshape(h // merge, merge, w // merge, merge, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    return np.tile(blocks, (t, 1))
