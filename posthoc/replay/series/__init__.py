"""Is a series of checkpoints what it says it is? What `posthoc check` reads, measures and finds."""
