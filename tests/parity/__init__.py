"""Compares the project's classes with tensors of reference implementations: `python -m tests.parity FOLDER...`."""
