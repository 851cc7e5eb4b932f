"""From a checkpoint to scores, tables and pictures."""
