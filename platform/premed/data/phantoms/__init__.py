"""Phantoms: synthetic images in the folder layouts of real data sets; the demo and the tests train on them.

Pose and anatomy vary from case to case, so that a voxel's position predicts little and its context much. The same seed
gives the same bytes. Public: `writers` (chest X-rays, hippocampus), `abdomen.write…`, `brain.write…`, `thorax`.
"""
