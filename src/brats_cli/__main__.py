"""Start of the `brats` command, and of `python -m brats_cli`: Ctrl-C ends it from here on."""

import sys


def main() -> None:
    """Entry point of the `brats` command."""
    try:
        from .app import main

        main()
    except KeyboardInterrupt:  # while it loads, or before Typer answers it
        sys.exit(130)


if __name__ == "__main__":
    main()
