"""`python -m ppo_kl` is the command `ppo-kl`."""

import sys

from ppo_kl.cli import main

sys.exit(main())
