"""`premed bench`: what premed does beside what a user would use instead. `bench.run` measures the rows of `rows.ROWS`."""
