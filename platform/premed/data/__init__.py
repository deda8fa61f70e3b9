"""From image files to batches: files (`io`), `preprocess`, `cache` of `prepared` images, `transforms` and `views`,
`samplers` and `loader`.

Public: `cache.Cache`, `datamodule`, `splits`, `check.Check` (`premed data check`), `figures`, `phantoms`.
"""
