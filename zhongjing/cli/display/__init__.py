"""What a person sees of a run: bars on a terminal, plain lines elsewhere, a table at the end."""
