"""Processes of a test's own, forked from one that has imported what takes long to: as multiprocessing's context."""

import multiprocessing

PLUGINS = ["premed.tasks.chestxray14", "premed.tasks.msd", "premed.tasks.images", "premed.encoders.vit"]
PLUGINS += ["premed.encoders.mit", "premed.encoders.unet", "premed.pretext.mae", "premed.pretext.hssl"]
PLUGINS += ["premed.pretext.unimiss", "premed.heads.linear", "premed.heads.probe", "premed.heads.conv"]
HEAVY = ["torchvision.transforms.v2", "torch._dynamo", "scipy.stats", "scipy.ndimage"]

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["launching", "helpers", *PLUGINS, *HEAVY])
