"""What is run before training: packing image files into shards, examining sets, previewing degradations."""
