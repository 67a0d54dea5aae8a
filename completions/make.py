"""Writes the completion scripts beside this file, as Typer makes them; `make completions`."""

from pathlib import Path

from typer.completion import get_completion_script

for shell in ("bash", "zsh", "fish"):
    script = get_completion_script(prog_name="brats", complete_var="_BRATS_COMPLETE", shell=shell)
    Path(__file__).with_name(f"brats.{shell}").write_text(script + "\n", encoding="utf-8")
