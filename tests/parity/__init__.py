"""Compares the project's classes with tensors computed by reference implementations: `python -m tests.parity FOLDER...`."""
