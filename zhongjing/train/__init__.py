"""The training loop, the four stages, and how a job runs them."""
