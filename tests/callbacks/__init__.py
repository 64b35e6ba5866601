"""Tests of the callbacks, on one small method and one small data set."""
