"""brats: from a folder of BraTS scans to scored segmentations and printable meshes."""

__version__ = "0.1.0"
