"""`premed init`: from a folder of images to a YAML that runs on this machine. `init.run` does it."""
