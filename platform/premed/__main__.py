"""`python -m premed` is `premed`."""

from premed.cli.app import main

main()
