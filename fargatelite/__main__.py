"""`python -m fargatelite` is the command line."""

from fargatelite.cli.main import main

main()
