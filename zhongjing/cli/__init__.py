"""The commands. Nothing here imports torch, ray, numpy or an S3 client before a command needs it."""
