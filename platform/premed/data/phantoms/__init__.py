"""Phantoms: synthetic but instructive images, in the folders of real data sets; the demo and the tests train on them.

The anatomy moves and varies from case to case, so that position alone tells little and context tells much. The same
seed gives the same bytes. Doors: `writers` (chest X-rays, hippocampus), `abdomen.write…`, `brain.write…`, `thorax`.
"""
