"""Generators of what is derived from the code: the CRD, schemas and pages. Neither shipped nor imported."""
