"""Start of the `brats` command, and of `python -m brats_cli`: Ctrl-C ends it from here on."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Entry point of the `brats` command.

    After Ctrl-C it ends by that signal, which a shell reports as status 130. A process that exits
    by itself with 130 looks to a shell as if it had used Ctrl-C for something else: a loop would go
    on with the next command (https://www.cons.org/cracauer/sigint.html).
    """
    try:
        from .app import main

        main()
    except (KeyboardInterrupt, SystemExit) as stop:  # Typer makes 130 of Ctrl-C
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        # Python clears up, and then sends itself the signal.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt from None


if __name__ == "__main__":
    main()
