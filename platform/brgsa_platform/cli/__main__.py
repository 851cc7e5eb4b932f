"""`python -m brgsa_platform.cli` is `brgsa`: what a job on a cluster runs."""

from brgsa_platform.cli.main import main

main()
