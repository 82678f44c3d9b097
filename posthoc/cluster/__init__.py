"""Batch jobs on Slurm clusters: an array of shards for each run, what is made of them, and what has become of them."""
