"""The science: prints nothing, exits never, raises typed errors."""
