"""PPO with four roles on one copy of the base."""
