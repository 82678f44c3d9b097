"""posthoc: what happened inside a network while it trained, from the checkpoints you already have."""

__version__ = "0.1.0"
