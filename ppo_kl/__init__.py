"""ppo_kl"""
