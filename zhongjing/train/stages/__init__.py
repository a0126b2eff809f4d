"""The four stages: what each loads, its loss, its evaluation, its result."""
