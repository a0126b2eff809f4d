"""``python -m zhongjing.submit``: the door to the pipeline, the same as ``zhongjing submit``.

::

    python -m zhongjing.submit --stage all --local            # the whole pipeline on this machine
    python -m zhongjing.submit --stage rm --local -f my.yaml  # one stage
    python -m zhongjing.submit --stage rm -n train            # on a cluster, in the namespace train
"""

from __future__ import annotations

import sys

from zhongjing.environment import leave

try:
    import typer

    from zhongjing.cli.app import add_submit
    from zhongjing.cli.console import escape_unencodable
    from zhongjing.cli.errors import run
    from zhongjing.cli.options import SETTINGS
except ModuleNotFoundError as error:
    leave(error)

app = typer.Typer(add_completion=False, **SETTINGS)
add_submit(app)


def main() -> None:
    """Runs the command line of this process and exits."""
    escape_unencodable()
    sys.exit(run(app, sys.argv[1:], "python -m zhongjing.submit"))


if __name__ == "__main__":
    main()
