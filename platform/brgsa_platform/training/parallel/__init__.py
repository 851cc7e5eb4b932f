"""Several training workers: what one knows of the others and agrees on with them, and the weights that they share out."""
