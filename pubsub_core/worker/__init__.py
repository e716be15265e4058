"""The running thing: one supervisor, N processes, each with T handler threads."""
