"""BrgSA: Bridged Semantic Alignment for zero-shot diagnosis from 3D CT, as a plain PyTorch library."""
