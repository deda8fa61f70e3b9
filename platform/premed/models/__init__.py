"""Networks. PLUG-INS: `encoders/` and `heads/`, a file each; `layers` and `network` are shared,
`pretrained` reads files of weights."""
