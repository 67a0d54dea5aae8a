"""How good a segmentation is: metrics, conventions for empty masks, cases and cohorts."""
