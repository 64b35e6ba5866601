"""Weights that papers published, made ours: one adapter per method, found by the name of the method's module."""
