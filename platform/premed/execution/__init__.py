"""execution: TODO."""
