"""The commands of `ppo-kl`, a file each, whose `main` takes the arguments and answers the exit status."""
