#!/usr/bin/env bash
# Makes models/micro-base again: random weights, stage 1 on captions, bfloat16.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=bin/uadt-train
rm -rf runs/micro-init runs/micro-base models/micro-base.new
"$bin" model init --out runs/micro-init --seed 1
"$bin" --config configs/micro_base.yaml
"$bin" model convert "$(ls -d runs/micro-base/checkpoints/step-* | tail -1)/policy" models/micro-base.new
if [ -d models/micro-base ]; then
  "$bin" model compare models/micro-base models/micro-base.new && rm -rf models/micro-base.new
else
  mv models/micro-base.new models/micro-base
fi
