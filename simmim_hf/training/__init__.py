"""From text to a checkpoint."""
