"""Identifiers in records, found by rules and replaced as a policy says."""
