"""Compiles every kernel for a Hopper GPU, which need not be there; a line for each.

Run by `test_kernels.py` in a process without the interpreter.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sglm.dni import injection_triton
from sglm.kernels import dropout_triton, lstm_triton

INTEGERS = dict.fromkeys(["units", "lanes", "size", "steps", "columns"], "i32")
INTEGERS |= dict.fromkeys(["first", "last", "first_lane"], "i32")
NUMBERS = dict.fromkeys(["activation", "temporal"], "fp32")
ALWAYS_FLOAT32 = dict.fromkeys(["partial_ptr", "penalty_gradient_ptr"], "*fp32")
ALWAYS_FLOAT32 |= dict.fromkeys(["cells_ptr", "to_cell_ptr"], "*fp32")
COUNTERS = {"arrived_ptr": "*i32"}


def compile_one(
    kernel: triton.JITFunction, warps: int, constants: dict[str, object], pointer: str = "*fp32"
) -> int:
    """Down to machine code; an error of any stage is raised. Returns its shared memory in bytes."""
    known = INTEGERS | NUMBERS | ALWAYS_FLOAT32 | COUNTERS | dict.fromkeys(constants, "constexpr")
    signature = {name: known.get(name, pointer) for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    built = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps})
    assert built.asm["cubin"]
    # What one block may have of a Hopper's multiprocessor.
    assert built.metadata.shared <= 227 * 1024
    print("compiled")
    return int(built.metadata.shared)


for capped in (True, False):
    sizes = {"CAPPED": capped, "SMALLEST": 1e-12, "BLOCK": 8192}
    compile_one(injection_triton._injected_kernel, 8, sizes)
for pointer in ("*fp32", "*bf16"):
    sizes = {"STEPS": dropout_triton.STEPS, "COLUMNS": dropout_triton.COLUMNS}
    compile_one(dropout_triton._forward_kernel, 4, sizes, pointer)
    compile_one(dropout_triton._backward_kernel, 4, sizes, pointer)
for units, group in ((256, 16), (lstm_triton.LARGEST, 32)):
    for kernel, (part, ahead), summed in (
        (lstm_triton.forward_kernel, lstm_triton.FORWARD, units),
        (lstm_triton.backward_kernel, lstm_triton.BACKWARD, 4 * units),
    ):
        sizes = lstm_triton._constants(group, part=part, ahead=ahead, summed=summed)
        needed = compile_one(kernel, lstm_triton.WARPS, sizes, "*bf16")
        assert needed <= lstm_triton._shared_bytes(units)
