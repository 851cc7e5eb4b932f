"""What every verb needs to run: Ray's session, filesystems, progress, pictures."""
