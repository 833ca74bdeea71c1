"""Files that runtimes execute, and the check that they do."""
