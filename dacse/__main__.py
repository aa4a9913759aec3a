"""`python -m dacse`."""

from command_dacse.cli import main

main()
