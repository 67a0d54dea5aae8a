"""Writes the completion scripts beside this file, as Typer makes them; `make completions`."""

from pathlib import Path

from typer.completion import get_completion_script

SHELLS = ("bash", "zsh", "fish")

# zsh runs a script that lies in its fpath as the function `_brats`, at the first TAB. Typer's only
# registers itself there, so that this TAB would complete nothing.
_REGISTERS = "compdef _brats_completion brats"
_COMPLETES = f"""\
if [ "$funcstack[1]" = _brats ]; then
  _brats_completion
else
  {_REGISTERS}
fi"""


def script(shell: str) -> str:
    """The completion script for a shell, to source or to put where the shell looks for it."""
    made = get_completion_script(prog_name="brats", complete_var="_BRATS_COMPLETE", shell=shell)
    return made.replace(_REGISTERS, _COMPLETES) + "\n"


if __name__ == "__main__":
    for name in SHELLS:
        Path(__file__).with_name(f"brats.{name}").write_text(script(name), encoding="utf-8")
