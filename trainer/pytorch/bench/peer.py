#!/usr/bin/env python3
"""Times the peer on the same shape: TRL's GRPOTrainer with flash attention in the vision tower and Liger layers.

    python bench/peer.py [--cases trained,frozen,...]

TRL trains a group with completions that are handed to it in place of generated ones, through its public
`rollout_func`; nothing of its step is changed. `s` is its training_step without the preparation of inputs:
forward, loss and backward of a group. `old_s` is the log-probability pass that it runs with vLLM. The text
part attends with scaled dot products, which is a causal flash kernel where all traces are full.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

for key, value in {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_DISABLED": "true",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(key, value)
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    AttentionInterface,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import shape  # noqa: E402

# name -> options. Liger patches the model's classes for the whole process, so every case has it.
CASES: dict[str, dict] = {
    "trained": {},
    "trained-nockpt": {"ckpt": False},
    "frozen": {"frozen": True},
    "trained-1024-2048": {"prompt": 1024, "response": 2048},
}
SPECIAL = {
    151643: "<|endoftext|>",
    151644: "<|im_start|>",
    shape.END: "<|im_end|>",
    shape.VISION_START: "<|vision_start|>",
    shape.VISION_END: "<|vision_end|>",
    shape.PAD: "<|image_pad|>",
    shape.VIDEO: "<|video_pad|>",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>w1 {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>w2 {% endif %}"
)


def varlen(module, query, key, value, attention_mask=None, cu_seq_lens_q=None, max_length_q=None, **_):  # noqa: ANN001, ANN003, ANN201
    """Flash attention of the tower's windows in one call, as flash_attention_2 would have it."""
    from torch.nn.attention.varlen import varlen_attn

    rows = [x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value)]
    cu, longest = cu_seq_lens_q.int(), int(max_length_q)
    return varlen_attn(*rows, cu, cu, longest, longest).unsqueeze(0), None


AttentionInterface.register("peer_flash_attention", varlen)


def processor() -> Qwen2_5_VLProcessor:
    """Make the family's own processor, with one word for each id of the real vocabulary."""
    words = {SPECIAL.get(i, f"w{i}"): i for i in range(shape.VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=list(SPECIAL.values()),
    )
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2)
    return Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(), chat_template=TEMPLATE
    )


def run(a: argparse.Namespace, name: str, o: dict) -> dict:
    """Train a few groups and return the medians."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing

    prompt, response = o.get("prompt", 512), o.get("response", 512)
    model = shape.model(torch.device("cuda"), torch.bfloat16, False)
    model.model.visual.config._attn_implementation_internal = "peer_flash_attention"  # noqa: SLF001
    if o.get("frozen"):
        # requires_grad alone still runs the tower's backward; no_grad is the remedy that its users have.
        model.model.visual.requires_grad_(False)
        model.model.visual.forward = torch.no_grad()(model.model.visual.forward)

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    class Clocked(GRPOTrainer):
        """The trainer with clocks around its own methods."""

        def _prepare_inputs(self, inputs):  # noqa: ANN001, ANN202
            begin = now()
            out = super()._prepare_inputs(inputs)
            self.preparing = now() - begin
            torch.cuda.reset_peak_memory_stats()
            return out

        def compute_loss(self, model, inputs, **kw):  # noqa: ANN001, ANN003, ANN202
            self.last = inputs
            return super().compute_loss(model, inputs, **kw)

        def training_step(self, *args, **kw):  # noqa: ANN002, ANN003, ANN202
            begin = now()
            out = super().training_step(*args, **kw)
            self.times.append(now() - begin - self.preparing)
            self.peak = torch.cuda.max_memory_allocated()
            return out

    image = Image.effect_noise((shape.SIDE, shape.SIDE), 80).convert("RGB")
    text = " ".join(f"w{i + 100}" for i in range(prompt - 256 - 7))
    row = {"prompt": [{"role": "user", "content": text}], "image": image}
    generator = torch.Generator().manual_seed(1)

    def rollout(prompts, trainer):  # noqa: ANN001, ANN202
        ids = trainer._tokenize_prompts(prompts)[0]  # noqa: SLF001
        done = torch.randint(100, 150000, (len(prompts), response), generator=generator).tolist()
        return {"prompt_ids": [list(x) for x in ids], "completion_ids": done, "logprobs": None}

    luck = random.Random(0)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=a.group,
        num_generations=a.group,
        max_completion_length=response,
        bf16=True,
        gradient_checkpointing=o.get("ckpt", True),
        use_liger_kernel=True,
        max_steps=a.warmup + a.reps,
        optim="sgd",
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
    )
    trainer = Clocked(
        model=model,
        reward_funcs=lambda completions, **_: [luck.random() for _ in completions],
        args=config,
        train_dataset=Dataset.from_list([row] * 2),
        processing_class=processor(),
        rollout_func=rollout,
    )
    trainer.times = []
    trainer.train()
    x = trainer.last
    if x["prompt_ids"].shape[1] != prompt or int((x["prompt_ids"] == shape.PAD).sum(1)[0]) != 256:
        message = f"prompt of {x['prompt_ids'].shape[1]} tokens"
        raise ValueError(message)
    ids = torch.cat([x["prompt_ids"], x["completion_ids"]], 1)
    mask = torch.cat([x["prompt_mask"], x["completion_mask"]], 1)
    extra = {k: x[k] for k in ("pixel_values", "image_grid_thw", "mm_token_type_ids") if k in x}
    model.zero_grad(set_to_none=True)
    old = []
    with torch.no_grad(), disable_gradient_checkpointing(trainer.model, config.gradient_checkpointing_kwargs):
        for _ in range(2 + a.reps):
            begin = now()
            trainer._get_per_token_logps_and_entropies(  # noqa: SLF001
                trainer.model, ids, mask, response, batch_size=a.group, num_images=x["num_images"], **extra
            )
            old.append(now() - begin)
    times = trainer.times[a.warmup :]
    s = statistics.median(times)
    return {
        "case": f"trl-liger-flash-{name}",
        "s": round(s, 4),
        "traces_s": round(a.group / s, 2),
        "min_s": round(min(times), 4),
        "max_s": round(max(times), 4),
        "old_s": round(statistics.median(old[2:]), 4),
        "peak_gib": round(trainer.peak / 2**30, 1),
    }


def main() -> None:
    """Run the cases that were asked for."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--group", type=int, default=8)
    p.add_argument("--reps", type=int, default=5)
    p.add_argument("--warmup", type=int, default=2)
    a = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    for name in a.cases.split(","):
        try:
            line = run(a, name, CASES[name])
        except Exception as error:  # noqa: BLE001 - a case that fails is a result too
            line = {"case": name, "failed": type(error).__name__, "what": str(error)[:600]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
