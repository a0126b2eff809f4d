"""The document: its models, how it is loaded, frozen and hashed."""
