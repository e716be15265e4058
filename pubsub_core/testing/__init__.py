"""What tests need: for applications, and for those who write a backend (`pubsub_core.testing.conformance`)."""
