"""Images from folders and shards to the Batch that every method reads."""
