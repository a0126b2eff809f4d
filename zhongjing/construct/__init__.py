"""Training data made of raw records: steps, what runs them, and manifests with lineage."""
