"""From a sharp image to its low-resolution counterpart, batched on the device, each image with its own parameters."""
