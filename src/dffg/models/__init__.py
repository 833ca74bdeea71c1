"""Every form that a network can be given in."""
