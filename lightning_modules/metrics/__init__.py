"""Scores of images that torchmetrics lacks, or defines otherwise than super-resolution papers do."""
