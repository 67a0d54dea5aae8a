#compdef brats

_brats_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _BRATS_COMPLETE=complete_zsh brats)
}

compdef _brats_completion brats
