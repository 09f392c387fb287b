"""Fused kernels for CUDA in Triton; imported only where `kernels.fused` has tried them."""
