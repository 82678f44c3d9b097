"""The replay wing: checkpoints on disk -> signals. It knows models and computes no metric."""
