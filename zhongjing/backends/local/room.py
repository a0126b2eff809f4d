"""The name under which :mod:`zhongjing.backends.local.disk_space` was known."""

from zhongjing.backends.local.disk_space import check_disk as check_room

__all__ = ["check_room"]
