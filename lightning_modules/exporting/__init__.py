"""Trained methods as folders for others: exported, verified, pushed to a hub."""
