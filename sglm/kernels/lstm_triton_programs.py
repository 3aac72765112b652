"""The programs of `lstm_triton`: an LSTM layer's steps, forward and backward.

`lstm_triton` describes what each program owns, and what is exchanged between steps. A step's time
is spent on waiting, not on arithmetic. So data are requested early, several blocks ahead; and each
warp sums over its own part of every block, so that no number is read by two warps.

Sums, cells and gradients within the layer are float32; the factors of products have the type of the
inputs.

Shapes: T time, B lanes of the group, H units, U units of the program, N = 4U gates of the program,
S warps, K numbers in a warp's part of a block. All except T and H are powers of two.
"""

import triton
import triton.language as tl

OWNED = 16  # units of a program: a matrix product needs at least as many columns
WARPS = 8


@triton.jit
def _arrive(arrived_ptr):
    """Signals that this program has stored what the others wait for."""
    tl.debug_barrier()  # waits for all threads of this program
    tl.atomic_add(arrived_ptr + tl.program_id(1), 1, sem="release")


@triton.jit
def _wait(arrived_ptr, arrivals):
    """Waits until `arrivals` programs have arrived; what they stored is then visible."""
    arrived_ptr += tl.program_id(1)
    seen = tl.atomic_add(arrived_ptr, 0, sem="acquire")
    while seen < arrivals:
        seen = tl.atomic_add(arrived_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _columns(
    weight_ptr, column_N, there_N, summed, to_next, to_column,
    SPLIT: tl.constexpr, PART: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Loads the constant factor in blocks of S·K rows and N columns, with the given strides."""
    blocks = ()
    for block in tl.static_range(BLOCKS):
        k_SK = tl.arange(0, SPLIT)[:, None] * PART + tl.arange(0, PART)[None, :]
        k_SK1 = (k_SK + block * SPLIT * PART)[:, :, None]
        pointers = weight_ptr + k_SK1 * to_next + column_N[None, None, :] * to_column
        there = (k_SK1 < summed) & there_N[None, None, :]
        blocks += (tl.load(pointers, mask=there, other=0.0),)  # type: ignore[assignment]
    return blocks


@triton.jit
def _rows(
    rows_ptr, b, there_B, summed, block: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr
):
    """Loads one block of each lane's values that the programs exchange."""
    k_SK = tl.arange(0, SPLIT)[:, None] * PART + tl.arange(0, PART)[None, :]
    k_S1K = (k_SK + block * SPLIT * PART)[:, None, :]
    return tl.load(
        rows_ptr + b[None, :, None] * summed + k_S1K,
        mask=there_B[None, :, None] & (k_S1K < summed),
        other=0.0,
        cache_modifier=".cg",  # written by others: not from this multiprocessor's cache
    )


# The compiler chooses when and how a tensor is laid out over the threads of a program. A load that
# never happens, with the tensor as its default, keeps it in the layout of such a load until then.
# The mask is false for all numbers that `arange` can return. The compiler notices that only late,
# but in time to leave the load out of the machine code.


@triton.jit
def _add_product(sums, rows, weights, rows_ptr, b, SPLIT: tl.constexpr, PART: tl.constexpr):
    """Adds a block's products; each warp adds those of its own part."""
    k_SK = tl.arange(0, SPLIT)[:, None] * PART + tl.arange(0, PART)[None, :]
    k_S1K = k_SK[:, None, :]
    # Otherwise the compiler would wait for each block right after requesting it.
    pointers = rows_ptr + b[None, :, None] * (SPLIT * PART) + k_S1K
    rows = tl.load(pointers, mask=k_S1K < 0, other=rows)
    return tl.dot(rows, weights, sums, input_precision="ieee")


@triton.jit
def _total(sums, scratch_ptr, SPLIT: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Returns the total of the warps' sums; each thread computes a few of the results."""
    SUMS: tl.constexpr = LANES * COLUMNS
    at_SM = tl.arange(0, SPLIT)[:, None] * SUMS + tl.arange(0, SUMS)[None, :]
    EACH: tl.constexpr = SUMS // (SPLIT * 32)  # results of a thread
    if EACH < 4:
        at_SM += tl.program_id(0) * EACH  # reduces the alignment: a thread takes EACH at most
    # Otherwise every warp would compute all results, and continue to compute with all of them.
    sums = tl.reshape(sums, [SPLIT, SUMS])
    sums = tl.load(scratch_ptr + at_SM, mask=at_SM < 0, other=sums)
    return tl.reshape(tl.sum(sums, 0), [LANES, COLUMNS])


@triton.jit
def _product(
    rows_ptr, b, there_B, summed, weights, scratch_ptr, LANES: tl.constexpr,
    COLUMNS: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr, BLOCKS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Multiplies the lanes' rows by the constant factor, with `AHEAD` blocks requested early."""
    rows = ()
    for block in tl.static_range(AHEAD):
        requested = _rows(rows_ptr, b, there_B, summed, block, SPLIT, PART)
        rows += (requested,)  # type: ignore[assignment]
    sums_SBN = tl.zeros([SPLIT, LANES, COLUMNS], tl.float32)
    for block in tl.static_range(BLOCKS):
        if block + AHEAD < BLOCKS:
            requested = _rows(rows_ptr, b, there_B, summed, block + AHEAD, SPLIT, PART)
            rows += (requested,)  # type: ignore[assignment]
        sums_SBN = _add_product(sums_SBN, rows[block], weights[block], rows_ptr, b, SPLIT, PART)
    return _total(sums_SBN, scratch_ptr, SPLIT, LANES, COLUMNS)


@triton.jit
def forward_kernel(
    gates_ptr, weight_ptr, hidden_ptr, cells_ptr, arrived_ptr, first, last, first_lane, lanes,
    units,
    LANES: tl.constexpr, OWNED: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr,
    BLOCKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Runs steps `first` to `last` − 1; in `gates_ptr` (T·B·4H), gates replace the inputs' part."""
    b = first_lane + tl.program_id(1) * LANES + tl.arange(0, LANES)
    n = tl.arange(0, 4 * OWNED)
    u = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    unit_N = tl.program_id(0) * OWNED + n % OWNED
    row_N = n // OWNED * units + unit_N
    there_B, there_N = b < lanes, unit_N < units
    there_BU = there_B[:, None] & (u < units)[None, :]
    weights = _columns(weight_ptr, row_N, there_N, units, 1, units, SPLIT, PART, BLOCKS)
    offset_BU = b[:, None] * units + u[None, :]
    c_BU = tl.load(cells_ptr + first * lanes * units + offset_BU, mask=there_BU, other=0.0)
    for t in range(first, last):
        gates_BN = gates_ptr + (t * lanes + b[:, None]) * 4 * units + row_N[None, :]
        inputs_BN = tl.load(gates_BN, mask=there_B[:, None] & there_N[None, :], other=0.0)
        if t > first:
            _wait(arrived_ptr, (t - first) * tl.num_programs(0))
        sums_BN = _product(
            hidden_ptr + t * lanes * units, b, there_B, units, weights, cells_ptr,
            LANES, 4 * OWNED, SPLIT, PART, BLOCKS, AHEAD,
        )  # fmt: skip
        sums_BN += inputs_BN.to(tl.float32)
        # N is (2, 2, U): input, forget; cell, output.
        sums_BU22 = tl.permute(tl.reshape(sums_BN, [LANES, 2, 2, OWNED]), [0, 3, 1, 2])
        sums_of_0_2, sums_of_1_3 = tl.split(sums_BU22)
        i_BU, g_BU = tl.split(sums_of_0_2)
        f_BU, o_BU = tl.split(sums_of_1_3)
        i_BU, f_BU, o_BU = tl.sigmoid(i_BU), tl.sigmoid(f_BU), tl.sigmoid(o_BU)
        g_BU = _tanh(g_BU)
        c_BU = f_BU * c_BU + i_BU * g_BU
        h_BU = o_BU * _tanh(c_BU)
        after = (t + 1) * lanes * units
        tl.store(hidden_ptr + after + offset_BU, h_BU, mask=there_BU)
        if t + 1 < last:
            _arrive(arrived_ptr)
        tl.store(cells_ptr + after + offset_BU, c_BU, mask=there_BU)
        gates_BU = gates_ptr + (t * lanes + b[:, None]) * 4 * units + u[None, :]
        tl.store(gates_BU, i_BU, mask=there_BU)
        tl.store(gates_BU + units, f_BU, mask=there_BU)
        tl.store(gates_BU + 2 * units, g_BU, mask=there_BU)
        tl.store(gates_BU + 3 * units, o_BU, mask=there_BU)


@triton.jit
def backward_kernel(
    gates_ptr, weight_ptr, cells_ptr, to_hidden_ptr, to_cell_ptr, to_gates_ptr, arrived_ptr, first,
    last, first_lane, steps, lanes, units,
    LANES: tl.constexpr, OWNED: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr,
    BLOCKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Runs steps `last` − 1 down to `first`: gradients of the gates' pre-activations and cells."""
    b = first_lane + tl.program_id(1) * LANES + tl.arange(0, LANES)
    u = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    there_B = b < lanes
    there_BU = there_B[:, None] & (u < units)[None, :]
    weights = _columns(weight_ptr, u, u < units, 4 * units, units, 1, SPLIT, PART, BLOCKS)
    offset_BU = b[:, None] * units + u[None, :]
    to_c_BU = tl.load(to_cell_ptr + offset_BU, mask=there_BU, other=0.0)
    for back in range(first, last):
        t = last - 1 - (back - first)
        before = t * lanes * units
        to_h_BU = tl.load(to_hidden_ptr + before + offset_BU, mask=there_BU, other=0.0)
        to_h_BU = to_h_BU.to(tl.float32)
        gates_BU = (t * lanes + b[:, None]) * 4 * units + u[None, :]
        i_BU = tl.load(gates_ptr + gates_BU, mask=there_BU, other=0.0).to(tl.float32)
        f_BU = tl.load(gates_ptr + gates_BU + units, mask=there_BU, other=0.0).to(tl.float32)
        g_BU = tl.load(gates_ptr + gates_BU + 2 * units, mask=there_BU, other=0.0).to(tl.float32)
        o_BU = tl.load(gates_ptr + gates_BU + 3 * units, mask=there_BU, other=0.0).to(tl.float32)
        c_before_BU = tl.load(cells_ptr + before + offset_BU, mask=there_BU, other=0.0)
        c_BU = tl.load(cells_ptr + before + lanes * units + offset_BU, mask=there_BU, other=0.0)
        if t + 1 < last:
            _wait(arrived_ptr, (last - 1 - t) * tl.num_programs(0))
        if t + 1 < steps:
            to_h_BU += _product(
                to_gates_ptr + (t + 1) * lanes * 4 * units, b, there_B, 4 * units, weights,
                cells_ptr, LANES, OWNED, SPLIT, PART, BLOCKS, AHEAD,
            )  # fmt: skip
        tanh_BU = _tanh(c_BU)
        to_c_BU += to_h_BU * o_BU * (1 - tanh_BU * tanh_BU)
        to_ptr = to_gates_ptr + gates_BU
        tl.store(to_ptr, to_c_BU * g_BU * i_BU * (1 - i_BU), mask=there_BU)
        tl.store(to_ptr + units, to_c_BU * c_before_BU * f_BU * (1 - f_BU), mask=there_BU)
        tl.store(to_ptr + 2 * units, to_c_BU * i_BU * (1 - g_BU * g_BU), mask=there_BU)
        tl.store(to_ptr + 3 * units, to_h_BU * tanh_BU * o_BU * (1 - o_BU), mask=there_BU)
        if t > first:
            _arrive(arrived_ptr)
        to_c_BU = to_c_BU * f_BU
    tl.store(to_cell_ptr + offset_BU, to_c_BU, mask=there_BU)
