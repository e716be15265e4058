"""The commands of `pubsub` and `flask pubsub`, a file for each concern: thin, over what a `PubSub` can do."""
