"""Stage jobs without torch: same request, progress, stop object and manifest as the real ones."""
