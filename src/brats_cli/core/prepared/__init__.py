"""Cases as the network sees them: preparation, and the store that patches are read from."""
