"""Shared by several strategies: contrastive losses, random views made on the device, volumes as slices."""
