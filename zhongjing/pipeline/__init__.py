"""What should run, and what does: the stage graph, frozen inputs, decisions, the reconcile loop."""
