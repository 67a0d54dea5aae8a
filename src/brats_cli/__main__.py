"""`python -m brats_cli` is `brats`, for launchers that want a module."""

from .app import main

main()
