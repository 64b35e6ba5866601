"""Adapters of weights that papers published: one per method, found by the name of the method's module."""
