"""Our AdamW against PyTorch's own."""

from __future__ import annotations

import torch

from uadt_trainer.optim import AdamW, AdamWOptions


def test_equals_torch_adamw() -> None:
    torch.manual_seed(0)
    weights = {"w.weight": torch.randn(5, 7), "w.bias": torch.randn(5)}
    ours = {n: torch.nn.Parameter(w.clone()) for n, w in weights.items()}
    theirs = {n: torch.nn.Parameter(w.clone()) for n, w in weights.items()}
    optimizer = AdamW(ours.items(), AdamWOptions(beta2=0.99, weight_decay=0.1))
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["w.weight"]], "weight_decay": 0.1},
            {"params": [theirs["w.bias"]], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    for _ in range(20):
        for name in weights:
            gradient = torch.randn_like(weights[name])
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        reference.step()
        optimizer.step(1e-2, 1.0)
    for name in weights:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)


def test_bfloat16_keeps_small_updates() -> None:
    p = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16))
    optimizer = AdamW([("w.weight", p)], AdamWOptions())
    for _ in range(8192):
        p.grad = torch.ones_like(p)
        optimizer.step(1e-6, 1.0)
    # 8192 updates of 1e-6 must show, though each is far below a bfloat16 step at 1.
    assert float(p[0, 0]) < 0.995


def test_restore_is_exact() -> None:
    torch.manual_seed(1)

    def run(stop: int | None) -> torch.Tensor:
        p = torch.nn.Parameter(torch.full((4, 4), 0.5, dtype=torch.bfloat16))
        optimizer = AdamW([("w.weight", p)], AdamWOptions(weight_decay=0.01))
        generator = torch.Generator().manual_seed(3)
        for step in range(10):
            if step == stop:
                state = {n: t.clone() for n, t in optimizer.state().items()}
                p = torch.nn.Parameter(torch.zeros_like(p))
                optimizer = AdamW([("w.weight", p)], AdamWOptions(weight_decay=0.01))
                optimizer.restore(state)
            p.grad = torch.randn(4, 4, generator=generator).to(torch.bfloat16)
            optimizer.step(1e-3, 0.5)
        return p.detach()

    assert torch.equal(run(None), run(5))
