#!/usr/bin/env bash
# Runs the tests that need stock vLLM, on CPU, on one server that all of them share; those of adapters and of the
# import of InternVL start their own, on their own checkpoints.
#
# UADT_VLLM_URL and UADT_VLLM_WEIGHTS (directories, separated by colons), when both are set, name a server
# that runs already; otherwise one is started on two fresh micro checkpoints and ended afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${UADT_VLLM_URL:-}" ] || [ -z "${UADT_VLLM_WEIGHTS:-}" ]; then
  work=$(mktemp -d)
  server=
  trap '[ -z "$server" ] || kill -- "-$server" 2>/dev/null || true; rm -rf "$work"' EXIT
  program=${UADT_TRAIN:-bin/uadt-train}
  for seed in 1 2; do
    "$program" model init --out "$work/$seed" --seed "$seed" >/dev/null
  done
  port=$("$(.ci/python-env)" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  # It takes broadcasts too, over gloo, by the plugin in that folder.
  if ! server=$(PYTHONPATH=$PWD/tests/python/vllm_gloo scripts/vllm-cpu/serve.sh "$work/1" "$port" "$work/log" \
    --weight-transfer-config '{"backend": "gloo"}'); then
    exit 1
  fi
  export UADT_VLLM_URL="http://127.0.0.1:$port" UADT_VLLM_WEIGHTS="$work/1:$work/2"
fi

go test -tags vllm -count=1 -run 'Real' ./rollout/vllm
UADT_PYTHON=$(.ci/python-env) go test -tags 'pytorch vllm' -count=1 -run 'VLLM' ./trainer/remote

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$(.ci/python-env)" -m pytest -q -p no:cacheprovider tests/python/test_three_engines.py tests/python/test_model_import.py

# The recipes have servers of their own, on models of two families: the shared one goes first.
if [ -n "${server:-}" ]; then
  kill -- "-$server" && server=
fi
"$(.ci/python-env)" -m pytest -q -p no:cacheprovider --durations=5 tests/python/test_recipes.py
