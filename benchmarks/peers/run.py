"""`python -m benchmarks.peers.run NAME publish COUNT`, which leaves the seconds it took, or `... NAME worker`."""

import importlib
import os
import sys
from time import perf_counter

from benchmarks.ours import leave

if __name__ == "__main__":
    peer = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}")
    if sys.argv[2] == "worker":
        os.execv(sys.executable, [sys.executable, "-m", *peer.WORKER])  # the words are ours
    peer.publish(1)
    began = perf_counter()
    peer.publish(int(sys.argv[3]) - 1)
    leave(perf_counter() - began)
