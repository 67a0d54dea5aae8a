"""From cases on disk to label maps, one or thousands, on one device or several."""
