"""Photographs are enlarged whole: the command, Python, and what bounds their memory."""
