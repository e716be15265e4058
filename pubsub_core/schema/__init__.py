"""Schemas of topics, as files: exported, compared with what was exported before, and put into an AsyncAPI document."""
