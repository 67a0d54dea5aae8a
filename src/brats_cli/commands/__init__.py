"""The subcommands: each parses, calls the core and prints."""
