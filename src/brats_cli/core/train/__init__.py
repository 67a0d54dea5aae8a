"""How a network learns: patches, augmentation, loss, epochs, and what a run leaves on disk."""
