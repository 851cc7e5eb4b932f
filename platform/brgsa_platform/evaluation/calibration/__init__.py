"""How scores become probabilities: fitted on a validation split, and kept beside the checkpoint."""
