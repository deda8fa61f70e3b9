"""Processes of a test's own, forked from one that has imported what takes long to: as multiprocessing's context."""

import multiprocessing

HEAVY = [
    "premed.cli.app",
    "premed.execution.runner",
    "premed.training.stage",
    "premed.tracking.run_store",
    "premed.tracking.stage_leases",
    "premed.training.import_weights",
]
HEAVY += ["premed.tasks.chestxray14", "premed.tasks.msd", "premed.tasks.images", "premed.models.encoders.vit"]
HEAVY += ["premed.models.encoders.mit", "premed.models.encoders.unet", "premed.pretext.mae", "premed.pretext.hssl"]
HEAVY += [
    "premed.pretext.unimiss",
    "premed.models.heads.linear",
    "premed.models.heads.probe",
    "premed.models.heads.conv",
]
HEAVY += ["mlflow.store.tracking.sqlalchemy_store", "timm.models.vision_transformer", "torchvision.transforms.v2"]
HEAVY += ["torch.export", "torch._dynamo", "scipy.stats", "scipy.ndimage", "pytest", "yaml"]

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(HEAVY)  # of the tests' own modules it finds none: it has another sys.path
