"""Images on voxel grids in space: the grid itself, and the one way in and out of NIfTI files."""
