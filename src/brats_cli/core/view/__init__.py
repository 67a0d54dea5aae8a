"""Cases as pictures, and as pages that open without a network."""
