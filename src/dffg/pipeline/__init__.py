"""The steps of a command in order, and what they share."""
