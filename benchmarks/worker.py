"""`pubsub`, as the command does it: for `python -m benchmarks.worker TARGET ...`, which needs no PATH."""

import sys

from pubsub_core.cli import main

if __name__ == "__main__":
    main(["worker", *sys.argv[1:]])
