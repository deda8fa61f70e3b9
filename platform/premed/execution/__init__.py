"""Experiments through their stages, in this process or on Ray: each stage is reused, waited for, or trained once.

Doors: `runner.run` and `run_all`, `preflight.resolve`, `executor.Executor` (where a stage trains), `submit` (Ray jobs).
"""
