"""`python -m dacse`."""

from dacse.cli import main

main()
