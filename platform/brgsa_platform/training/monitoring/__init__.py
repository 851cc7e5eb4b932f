"""What a training tells while it runs: its losses, where a step's time goes, and what its machines do."""
