"""Functions that PyTorch computes in many small launches: references, and Triton kernels of them.

Which of the two runs, `sglm.kernels.choice` says: a kernel that was measured to be faster. So far
none was, for nobody has measured them. They are tested under Triton's interpreter and compile
for a GPU; whether they are faster there is unknown (`scripts.benchmarks.kernels` measures it). A
model that is built while the environment variable `SGLM_TRITON` is 1 gets all of them, while it is
0 none.
"""
