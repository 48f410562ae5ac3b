"""Latency, memory and quality of any number of checkpoints, in one table and one record."""
