"""The test cluster by hand: ``python -m tests.cluster.node prepare|up|image|down``.

Test runs use a cluster that was brought up so, and leave it.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.cluster.node.images import build_images
from tests.cluster.node.node import bring_up, prepare, running
from tests.cluster.node.place import HarnessError, UnavailableError, default_place


def main() -> int:
    """Runs one command; prints what to set for kubectl and Helm."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.node", description=__doc__)
    parser.add_argument("command", choices=["prepare", "up", "image", "down"])
    command = parser.parse_args().command
    place = default_place()
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", file=sys.stderr, flush=True)  # noqa: T201

    try:
        node = running(place)
        if command == "prepare":
            prepare(place, say)
        elif command == "up":
            node = node or bring_up(place, say, bound=False)
            print(f"export KUBECONFIG={place.kubeconfig} PATH={place.bin}:$PATH")  # noqa: T201
        elif node is None:
            raise HarnessError("no cluster is up")
        elif command == "image":
            build_images(place, say)
            say(f"{node.import_images() / 1e6:.0f} MB taken in")
        else:
            node.down()
    except (HarnessError, UnavailableError) as error:
        say(str(error))
        return 1
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
