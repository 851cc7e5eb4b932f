"""The `brgsa` command: one file for each group of verbs, without logic of its own."""
