"""Base models, adapters, the reward model's head, generation, and the folders in which they are handed on."""
