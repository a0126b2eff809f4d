"""The name under which :mod:`zhongjing.backends.kubernetes.secrets` was known."""

from zhongjing.backends.kubernetes.secrets import ray_token

__all__ = ["ray_token"]
