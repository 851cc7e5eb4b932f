"""What every verb needs to run: Ray's session, filesystems, whole files, locks, waits, the terminal, pictures."""
