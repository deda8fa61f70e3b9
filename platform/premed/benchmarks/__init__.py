"""`premed bench`: premed beside what a user would use instead. `bench.run` measures the rows of `rows.ROWS`."""
