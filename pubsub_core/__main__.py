"""`python -m pubsub_core` is the command `pubsub`."""

from pubsub_core.cli import main

if __name__ == "__main__":
    main(prog_name="pubsub")
