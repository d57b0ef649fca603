"""Stable-Baselines3's PPO on a workload, as one line of JSON; --subproc and --threads use more cores."""

import stable_baselines3
import torch
from sb3_like import arguments, show, timed

if __name__ == "__main__":  # the environments' processes import this file
    args = arguments()
    torch.set_num_threads(args.threads)
    show(timed(stable_baselines3.PPO, args, device="cpu"), stable_baselines3.__version__)
