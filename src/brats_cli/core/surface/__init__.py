"""From label maps to closed triangle surfaces in millimetres, and to files that hold them."""
