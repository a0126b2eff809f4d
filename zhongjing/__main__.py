"""``python -m zhongjing``: the same as the console script ``zhongjing``."""

from __future__ import annotations

from zhongjing.cli.app import main

if __name__ == "__main__":
    main()
