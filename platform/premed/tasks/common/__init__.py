"""Shared by several tasks: classification, segmentation, their metrics, and the parsing of listings."""
