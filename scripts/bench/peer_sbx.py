"""SBX's PPO (JAX on the CPU) on a workload, as one line of JSON; actor and critic have an optimiser each there."""

import os

# Before JAX is imported: one thread, and no look for an accelerator.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import sbx
from sb3_like import arguments, show, timed

if __name__ == "__main__":
    show(timed(sbx.PPO, arguments()), sbx.__version__)
