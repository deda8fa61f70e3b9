"""Image files (NIfTI, DICOM, PNG, JPEG) and the geometry of their grids. Public: `readers.read_image`, `geometry`."""
