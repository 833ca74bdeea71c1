"""The one graph of a network, and small passes over it."""
