"""The name under which :mod:`zhongjing.backends.kubernetes.diagnosis` was known."""

from zhongjing.backends.kubernetes.diagnosis import ALL, Explainer

__all__ = ["ALL", "Explainer"]
