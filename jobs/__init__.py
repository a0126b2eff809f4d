"""Ray entry points, one a stage, and the recipes."""
