#!/usr/bin/env bash
# The GPU numbers of docs/measurements.md as JSON lines, on a machine with one GPU of 80 GB.
# UADT_GPU_PYTHON names its interpreter (default python3). It needs torch, transformers and the trainer's other
# packages; the peer's lines also need trl==1.16.0 with datasets, dill, multiprocess and liger-kernel==0.8.5.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../trainer/pytorch"
python=${UADT_GPU_PYTHON:-python3}
if "$python" -c 'import trl, liger_kernel' 2>/dev/null; then
  "$python" bench/peer.py
else
  echo '{"case": "trl", "skipped": "trl and liger-kernel are not installed: nothing to compare with"}'
fi
"$python" bench/ours.py "$@"
