"""A stage's job: the driver on the head, its workers, and what both keep on a node."""
