"""Functions that PyTorch computes in many small launches: references, and Triton kernels of them.

Which of the two runs, `sglm.kernels.choice` says: a kernel that was measured to be faster
(`scripts.benchmarks.kernels` measures it), where Triton is there and the tensors are on a GPU. The
kernels are tested under Triton's interpreter, too. A model that is built while the environment
variable `SGLM_TRITON` is 1 gets all of them, while it is 0 none.
"""
