#!/usr/bin/env bash
# Table 1 of the PPO paper: 231 runs of a million steps, or those that docs/results/ppo_table1 does not have yet, and the
# report. Stopped and called again, it goes on. Options are those of `ppo-kl ablate`, as --parallel 8 or --dry-run.
#
#     pip install -c constraints.txt -e '.[mujoco,report]' && scripts/reproduce_table1.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec ppo-kl ablate --config ppo_table1 --folder docs/results/ppo_table1 "$@"
