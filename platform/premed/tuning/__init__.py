"""tuning: TODO."""
