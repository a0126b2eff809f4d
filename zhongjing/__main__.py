"""``python -m zhongjing``: the same as the console script ``zhongjing``."""

from __future__ import annotations

from zhongjing.environment import leave

try:
    from zhongjing.cli.app import main
except ModuleNotFoundError as error:
    leave(error)

if __name__ == "__main__":
    main()
