"""A case made visible: scans, segmentations and scores as pictures, and as pages that open offline."""
