"""The command line: one file for every group of commands. Everything heavy is imported when a command runs."""
