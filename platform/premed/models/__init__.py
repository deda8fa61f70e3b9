"""Networks. Plug-ins: `encoders/` and `heads/`, one file each. `layers` and `network` are shared; `pretrained` reads
pretrained weights."""
