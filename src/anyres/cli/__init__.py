"""The command `anyres`: each file parses one group of verbs, calls down, and prints."""
