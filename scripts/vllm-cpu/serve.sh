#!/usr/bin/env bash
# Starts stock vLLM on CPU, waits until it is healthy, and prints its process id.
#
#   scripts/vllm-cpu/serve.sh CHECKPOINT PORT LOG [vLLM options...]
#
# It serves CHECKPOINT on 127.0.0.1:PORT as the model "policy", with the development routes that weight
# changes need, and writes its output to LOG. The server leads a process group: end it and its workers with
# "kill -- -PID". Exit status 1: the server died or was not healthy within UADT_VLLM_START seconds (300).
set -euo pipefail

checkpoint=$(realpath "${1:?checkpoint directory}")
port=${2:?port}
log=${3:?log file}
shift 3

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$("$root/.ci/python-env")
environment=$(dirname "$(dirname "$python")")

# Offline and silent; the routes for pausing and reloading; 1 GiB of KV cache, the least there is.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_SERVER_DEV_MODE=1 VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
# Without Dynamo the engine starts in seconds instead of most of a minute, with the same results.
export TORCHDYNAMO_DISABLE=1 CUDA_VISIBLE_DEVICES=
# Each of its processes would compile all of Python anew otherwise.
unset PYTHONDONTWRITEBYTECODE

preload=
for library in /usr/lib/*/libtcmalloc_minimal.so.4 "$environment/lib/libiomp5.so"; do
  if [ -e "$library" ]; then preload="$preload${preload:+:}$library"; fi
done

# Chunked prefill is off: on CPU a request with a seed whose prompt is split kills the engine. The generation
# configuration of the checkpoint is off, so that a request says all there is to say about sampling. The cap
# on log-probabilities is one above 20, because the sampled token takes a place among the top ones.
LD_PRELOAD="$preload" setsid "$python" -m vllm.entrypoints.openai.api_server \
  --model "$checkpoint" --served-model-name policy --host 127.0.0.1 --port "$port" \
  --dtype float32 --enforce-eager --no-enable-chunked-prefill --skip-mm-profiling \
  --max-model-len "${UADT_VLLM_LENGTH:-1024}" --max-num-seqs 64 --max-num-batched-tokens 2048 \
  --generation-config vllm --logprobs-mode processed_logprobs --max-logprobs 21 \
  --limit-mm-per-prompt '{"image": 4, "video": 0}' --enable-prompt-tokens-details "$@" >"$log" 2>&1 &
pid=$!

for ((waited = 0; waited < ${UADT_VLLM_START:-300} * 4; waited++)); do
  if ! kill -0 "$pid" 2>/dev/null; then
    echo "vLLM died; the end of $log:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
  if curl -sf -o /dev/null "http://127.0.0.1:$port/health"; then
    echo "$pid"
    exit 0
  fi
  sleep 0.25
done
echo "vLLM was not healthy after ${UADT_VLLM_START:-300} s; see $log" >&2
kill -- "-$pid" 2>/dev/null || true
exit 1
