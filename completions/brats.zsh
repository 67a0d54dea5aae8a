#compdef brats

_brats_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _BRATS_COMPLETE=complete_zsh brats)
}

if [ "$funcstack[1]" = _brats ]; then
  _brats_completion
else
  compdef _brats_completion brats
fi
