"""What a run takes before it runs: arithmetic on a model's config.json, without torch."""
