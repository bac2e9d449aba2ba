"""``python -m rankwright`` is the command line."""

from rankwright.cli import main

main()
