"""The innermost loop of every product on a CPU: a few rows of activations times a few blocks of packed weights.

It is written as LLVM's own code, because a compiler that starts from Python's loops neither keeps the sums in registers
nor finds the instruction that multiplies pairs of bfloat16. One tile holds its sums, ``rows`` times ``blocks`` vectors
of sixteen outputs, in registers from the first input to the last: each weight is read once, and each sum is formed in
the order of the inputs, whatever the shape of the tile. So the value of a row does not depend on the rows beside it.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Outputs a block."""
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS = ir.VectorType(_F32, LANES)
_WORDS = ir.VectorType(_I32, LANES)


class _BFloat(ir.Type):
    """LLVM's bfloat, for which llvmlite has no name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


@functools.cache
def features() -> dict[str, bool]:
    """The processor's features by LLVM's names, less those that numba was told to do without."""
    from numba import config

    names = dict(llvm.get_host_cpu_features())
    for name in (config.CPU_FEATURES or "").split(","):
        if name[:1] in "+-" and name[1:]:
            names[name[1:]] = name[0] == "+"
    return names


def has_pairs() -> bool:
    """Whether one instruction multiplies pairs of bfloat16 and adds them to float32."""
    return bool(features().get("avx512bf16"))


def has_fours() -> bool:
    """Whether one instruction multiplies bytes by fours, those of weights unsigned, and adds them to int32."""
    return bool(features().get("avx512vnni"))


def blocks_for(rows: int) -> int:
    """Blocks a tile of ``rows`` rows: as many as the registers hold, and enough sums to hide an addition's latency."""
    if features().get("avx512f"):  # 32 registers of sixteen numbers
        return 4
    return {1: 4, 2: 2, 3: 2}.get(rows, 1)  # 16 registers of eight


def _word(builder: Any, address: Any) -> Any:
    """A vector of the 32 bits at ``address``, again and again."""
    word = builder.load(builder.inttoptr(address, _I32.as_pointer()))
    word.align = 4
    nothing = ir.Constant(_WORDS, ir.Undefined)
    first = builder.insert_element(nothing, word, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_WORDS, [0] * LANES))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return builder.module.declare_intrinsic(name, (), ir.FunctionType(result, arguments))


class _Form:
    """How weights of one numba dtype are multiplied: ``weight_bytes`` of a block and 4 bytes of a row a step."""

    def __init__(self, weight: Any) -> None:
        self.pairs, self.fours = weight == types.int16, weight == types.uint8
        self.sums = _WORDS if self.fours else _FLOATS
        self._narrow = {types.uint16: ir.HalfType(), types.int8: ir.IntType(8)}.get(weight)
        self.weight_bytes = {types.int16: 64, types.uint8: 64, types.uint16: 32, types.int8: 16}[weight]

    def weights(self, builder: Any, address: Any) -> Any:
        if self.fours:
            return _load(builder, address, _WORDS)
        if self.pairs:
            return builder.bitcast(_load(builder, address, _WORDS), _PAIRS)
        # Weights in float16 or int8 are widened to float32 in the register; only half or a quarter of the bytes come
        # from memory.
        narrow = _load(builder, address, ir.VectorType(self._narrow, LANES))
        if isinstance(self._narrow, ir.IntType):
            return builder.sitofp(narrow, _FLOATS)
        return builder.fpext(narrow, _FLOATS)

    def activations(self, builder: Any, address: Any) -> Any:
        word = _word(builder, address)
        return word if self.fours else builder.bitcast(word, _PAIRS if self.pairs else _FLOATS)

    def add(self, builder: Any, total: Any, weights: Any, activations: Any) -> Any:
        if self.pairs:
            # VDPBF16PS: sixteen dot products of two bfloat16 pairs, added to float32 sums.
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            return builder.call(
                _function(builder, name, _FLOATS, [_FLOATS, _PAIRS, _PAIRS]), [total, weights, activations]
            )
        if self.fours:
            # VPDPBUSD: sixteen dot products of four unsigned by four signed bytes, added to int32 sums; exact.
            name = "llvm.x86.avx512.vpdpbusd.512"
            return builder.call(_function(builder, name, _WORDS, [_WORDS] * 3), [total, weights, activations])
        name = f"llvm.fma.v{LANES}f32"
        return builder.call(_function(builder, name, _FLOATS, [_FLOATS] * 3), [weights, activations, total])


def _tile(rows: int, blocks: int) -> Any:
    def typed(context: Any, w: Any, x: Any, y: Any, block: Any, row: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, inputs, outputs = (
                context.make_array(kind)(context, builder, value)
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            block, row = arguments[3:]
            in_fours, in_bytes = signature.args[0].dtype == types.uint8, signature.args[1].dtype == types.int8
            if in_fours != in_bytes or (in_fours and not has_fours()):
                return context.get_dummy_value()  # no such product is asked for: this is compiled and never called
            form = _Form(signature.args[0].dtype)
            steps = cgutils.unpack_tuple(builder, weights.shape, 3)[1]
            block_bytes = cgutils.unpack_tuple(builder, weights.strides, 3)[0]
            row_bytes = cgutils.unpack_tuple(builder, inputs.strides, 2)[0]
            result_bytes = cgutils.unpack_tuple(builder, outputs.strides, 2)[0]

            # First element of each block of weights, row of inputs and row of sums; inside the loop only offsets are
            # added.
            def addresses(data: Any, first: Any, stride: Any, count: int) -> list[Any]:
                start = builder.add(builder.ptrtoint(data, _I64), builder.mul(first, stride))
                return [builder.add(start, builder.mul(stride, ir.Constant(_I64, i))) for i in range(count)]

            weight_at = addresses(weights.data, block, block_bytes, blocks)
            input_at = addresses(inputs.data, row, row_bytes, rows)
            output_at = addresses(outputs.data, row, result_bytes, rows)

            # A loop over the inputs, written as phis: rows x blocks accumulators that never leave their registers. Each
            # step loads one vector of weights per block and broadcasts one word of inputs per row.
            before = builder.block
            loop = builder.append_basic_block("inputs")
            after = builder.append_basic_block("sums")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(_I64)
            step.add_incoming(ir.Constant(_I64, 0), before)
            sums = [[builder.phi(form.sums) for _ in range(blocks)] for _ in range(rows)]
            weight_offset = builder.mul(step, ir.Constant(_I64, form.weight_bytes))
            input_offset = builder.mul(step, ir.Constant(_I64, 4))
            loaded = [form.weights(builder, builder.add(place, weight_offset)) for place in weight_at]
            for row_sums, place in zip(sums, input_at, strict=True):
                given = form.activations(builder, builder.add(place, input_offset))
                for index, total in enumerate(row_sums):
                    # The accumulator is zero on entry and the grown sum on every later turn.
                    total.add_incoming(ir.Constant(form.sums, None), before)
                    grown = form.add(builder, total, loaded[index], given)
                    total.add_incoming(grown, loop)
                    row_sums[index] = grown
            following = builder.add(step, ir.Constant(_I64, 1))
            step.add_incoming(following, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, steps), loop, after)

            builder.position_at_end(after)
            # The sums leave their registers once, sixteen outputs of four bytes each per block.
            column = builder.mul(block, ir.Constant(_I64, 4 * LANES))
            for row_sums, place in zip(sums, output_at, strict=True):
                for index, total in enumerate(row_sums):
                    at = builder.add(builder.add(place, column), ir.Constant(_I64, 4 * LANES * index))
                    builder.store(total, builder.inttoptr(at, form.sums.as_pointer())).align = 4
            return context.get_dummy_value()

        return types.void(w, x, y, types.int64, types.int64), generate

    return intrinsic(typed)


@functools.cache
def tile(rows: int, blocks: int) -> Any:
    """What compiled code calls as ``tile(weight, x, y, block, row)``: y[row + i, 16 (block + j) + lane] of the products
    of ``rows`` rows and ``blocks`` blocks.

    ``weight`` [blocks, steps, numbers per step] as ``pack`` makes it: int16 holds bfloat16 pairs, uint16 float16, int8
    itself, uint8 fours of ``digits``; ``x`` [rows, inputs], rows contiguous: bfloat16 patterns as int16 with int16
    weights, int8 with uint8 ones, else float32; ``y`` [rows, at least 16 times blocks] float32, int32 with uint8
    weights.
    """
    return _tile(rows, blocks)
