"""The `brgsa` command: a file a group of verbs, no logic."""
