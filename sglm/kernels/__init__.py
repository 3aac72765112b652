"""Functions that PyTorch computes in many small launches: references, and Triton kernels for them.

`sglm.kernels.choice` decides which of the two runs: a kernel if it was measured to be faster (by
`scripts.benchmarks.kernels`), Triton is installed and the tensors are on a GPU. The kernels are
also tested under Triton's interpreter. A model that is built while the environment variable
`SGLM_TRITON` is 1 uses all of them; while it is 0, none.
"""
