"""Data: sources are read into records, records become tokens, tokens become micro-batches."""
