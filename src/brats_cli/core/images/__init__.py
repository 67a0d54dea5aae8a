"""Images on voxel grids in space, and their one way in and out of files."""
