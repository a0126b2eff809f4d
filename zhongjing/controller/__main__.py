"""``python -m zhongjing.controller --config /etc/zhongjing/release/release.yaml``: runs until it is ended."""

from __future__ import annotations

import sys

from zhongjing.controller.process import main

if __name__ == "__main__":
    sys.exit(main())
