"""What several strategies share: losses between views, augmentation on the device, volumes as slices."""
