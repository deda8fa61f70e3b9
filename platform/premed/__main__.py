"""`python -m premed` is `premed`."""

from premed.cli import main

main()
