"""Synthetic example data: a table of facts and a seeded generator. Not medical advice."""
