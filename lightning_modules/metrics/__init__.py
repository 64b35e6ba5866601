"""Scores of images and of sets of images, and where their weights come from."""
