"""Everything that outlives a process: objects, manifests, checkpoints, progress; and the embedded server."""
