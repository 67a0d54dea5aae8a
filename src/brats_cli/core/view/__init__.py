"""Cases made visible, as pictures and as pages that open without a network."""
