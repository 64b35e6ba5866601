"""What a run logs and keeps: sample grids, image metrics, averaged weights, progress."""
