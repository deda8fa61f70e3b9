"""Image files (NIfTI, DICOM, PNG, JPEG) and the geometry of their grids. Doors: `readers.read_image`, `geometry`."""
