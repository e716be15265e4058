"""Speed, side by side with the same work in plain redis-py. Run by `make bench`, or `python -m benchmarks`."""
