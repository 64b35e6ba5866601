"""The engine: what runs during training, from stored records to batches of uint8 images."""
