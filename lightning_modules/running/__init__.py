"""A run of an experiment: its start, what it needs, its log, and whether it repeats exactly."""
