#!/usr/bin/env bash
# Train on a CUDA GPU: scripts/train_gpu.sh [options of `ppo-kl train`]
# For example: scripts/train_gpu.sh --env Hopper-v5 --objective kl_adaptive --seed 3
set -euo pipefail
python=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)

"$python" - <<'CHECK'
import sys

import torch

if not torch.cuda.is_available():
    built = torch.version.cuda or "no CUDA: this is a CPU build"
    sys.exit(
        f"train_gpu.sh: PyTorch {torch.__version__} (built for {built}) sees no CUDA GPU. Check `nvidia-smi`, install a "
        "CUDA build of PyTorch, or train on the CPU with: ppo-kl train --runtime cpu"
    )
gpu = torch.cuda.get_device_properties(0)
print(f"GPU: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
CHECK

exec "$python" -m ppo_kl train --runtime cuda "$@"
