"""`premed bench --gpu`: does premed work on this GPU, and how fast? `run.run` measures the rows of `rows.ROWS`."""
