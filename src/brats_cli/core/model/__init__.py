"""A network from its config to its answer: architecture, checkpoint, windows, thresholds."""
