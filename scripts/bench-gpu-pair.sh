#!/usr/bin/env bash
# Weights to a live vLLM on the next GPU, as JSON lines, on a machine with two GPUs: the server on GPU 0, the
# trainer on GPU 1. Goal: pause_to_resume_s of at most 0.4 at 7.5 GB.
#
#   scripts/bench-gpu-pair.sh CHECKPOINT
#
# CHECKPOINT holds config, tokenizer and processor of Qwen2.5-VL-3B; weights are not read. UADT_GPU_PYTHON names an
# interpreter (default python3) with torch, transformers and vLLM 0.25.1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkpoint=$(realpath "${1:?checkpoint directory}")
python=${UADT_GPU_PYTHON:-python3}
log=$(mktemp)
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_SERVER_DEV_MODE=1 NCCL_NVLS_ENABLE=0

CUDA_VISIBLE_DEVICES=0 setsid "$python" -m vllm.entrypoints.cli.main serve "$checkpoint" --load-format dummy \
  --served-model-name policy --host 127.0.0.1 --port "$port" --generation-config vllm --max-model-len 4096 \
  --gpu-memory-utilization 0.8 --limit-mm-per-prompt '{"image": 1, "video": 0}' \
  --weight-transfer-config '{"backend": "nccl"}' >"$log" 2>&1 &
server=$!
trap 'kill -- "-$server" 2>/dev/null || true' EXIT
for ((waited = 0; waited < 300; waited++)); do
  if ! kill -0 "$server" 2>/dev/null; then
    tail -n 20 "$log" >&2
    exit 1
  fi
  if curl -sf -o /dev/null "http://127.0.0.1:$port/health"; then
    CUDA_VISIBLE_DEVICES=1 "$python" trainer/pytorch/bench/push.py --url "http://127.0.0.1:$port" --checkpoint "$checkpoint"
    exit
  fi
  sleep 1
done
echo "vLLM was not healthy after 300 s; see $log" >&2
exit 1
