"""From a store to a training worker's batches: which volume comes when, how it is read, and the text beside it."""
