"""`python -m brgsa_platform.cli` is `brgsa`. Jobs on a cluster run it so."""

from brgsa_platform.cli.main import main

main()
