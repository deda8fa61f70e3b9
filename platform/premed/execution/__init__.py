"""Experiments through their stages, in this process or on Ray: each stage is reused, waited for, or trained once.

Entry points: `runner.run` and `run_all`, `preflight.resolve`, `executor.Executor` (runs a stage), `submit` (Ray jobs).
"""
