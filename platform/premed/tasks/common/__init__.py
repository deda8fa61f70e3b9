"""What the tasks of a kind share: classification, segmentation, their metrics, and how listings are read."""
