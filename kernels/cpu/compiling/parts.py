"""Parts of the work of compiled code, side by side in numba's threads.

Numba has ``prange`` for that. It compiles what is in the loop three times, once for indices of another type, and takes
Python's lock around every loop, for which a step would wait while other threads of a server run. Here a loop over parts
is one call of what numba's own loops call in the end, and a part is a compiled function like any other.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.types.misc import unliteral
from numba.extending import intrinsic
from numba.np.ufunc import parallel

_BYTE, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER, _WORD = _BYTE.as_pointer(), _I64.as_pointer()
_KERNEL = ir.FunctionType(ir.VoidType(), [_POINTER.as_pointer(), _WORD, _WORD, _POINTER])
"""As the threads call it: pointers that grow by steps from one part to the next, of which the only one, beginning at
null, is the number of the first part; how many parts; the steps; what all calls share."""
_LOOP = ir.FunctionType(ir.VoidType(), [_POINTER] * 5 + [_I64] * 3)


def start_threads() -> None:
    """Let compiled code find the threads, which wait from then on. Code that is loaded needs it, too."""
    parallel._launch_threads()


def in_parts(part_of: Any) -> Any:
    """What compiled code calls as ``run(arguments, parts)``: ``part_of(*arguments, part)`` for every part from 0 to
    ``parts``, as many at a time as there are threads. ``arguments``: a tuple; ``part_of``: compiled, returns nothing.

    What a part raises becomes a RuntimeError once all have ended. Under ``one_at_a_time`` only.
    """

    def typed(typing_context: Any, arguments: Any, parts: Any) -> Any:
        given = (*(unliteral(kind) for kind in arguments.types), types.int64)
        # Compiled while the caller's types are inferred: its code and its failures belong to the caller's compilation.
        part_of.compile(given)
        signature = types.void(arguments, types.int64)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            start_threads()
            # The part becomes part of the caller's library, and code that is loaded from disk starts the threads before
            # it runs.
            made = part_of.overloads[given]
            library = context.active_code_library
            library.add_linking_library(made.library)
            library._reload_init.add(start_threads)
            shared_type = ir.LiteralStructType([context.get_value_type(arguments), _I32])
            kernel = _kernel(context, builder, made.fndesc, given, shared_type)

            def room(kind: Any, *held: Any) -> Any:
                place = cgutils.alloca_once(builder, kind)
                for index, value in enumerate(held):
                    builder.store(value, builder.gep(place, [_I32(0), _I32(index)]))
                return place

            def plain(place: Any) -> Any:
                return builder.bitcast(place, _POINTER)

            # What all calls share: the arguments as one struct, and a word that a part sets when it fails, for nothing
            # can be raised across numba's thread pool.
            shared = room(shared_type, values[0], _I32(0))
            # Numba's pool is made for ufuncs, which step pointers through arrays. One pointer that begins at null and
            # steps by 1 is the number of the part.
            starts = room(ir.ArrayType(_POINTER, 1), _POINTER(None))
            counts, steps = room(ir.ArrayType(_I64, 1), values[1]), room(ir.ArrayType(_I64, 1), _I64(1))
            loop = cgutils.get_or_insert_function(builder.module, _LOOP, "numba_parallel_for")
            threads = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, []), "get_num_threads")
            places = [plain(place) for place in (kernel, starts, counts, steps, shared)]
            builder.call(loop, [*places, _I64(0), _I64(1), builder.call(threads, [])])
            failed = builder.load(builder.gep(shared, [_I32(0), _I32(1)]))
            with builder.if_then(builder.icmp_unsigned("!=", failed, _I32(0)), likely=False):
                context.call_conv.return_user_exc(builder, RuntimeError, ("a part of a compiled loop failed",))
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(typed)


def _kernel(context: Any, around: Any, description: Any, given: Any, shared_type: Any) -> Any:
    """The function that calls the one that ``description`` describes for some parts that follow each other."""
    module = around.module
    kernel = ir.Function(module, _KERNEL, module.get_unique_name(f"{around.function.name}.parts"))
    kernel.linkage = "internal"
    builder = ir.IRBuilder(kernel.append_basic_block())
    starts, counts, _, shared = kernel.args
    shared = builder.bitcast(shared, shared_type.as_pointer())
    # The pool calls the kernel with runs of parts: ``first`` to before ``first + counts[0]``.
    values = cgutils.unpack_tuple(builder, builder.load(builder.gep(shared, [_I32(0), _I32(0)])))
    first = builder.ptrtoint(builder.load(starts), _I64)
    callee = context.declare_function(module, description)
    with cgutils.for_range(builder, builder.load(counts), intp=_I64) as loop:
        part = builder.add(first, loop.index)
        status, _ = context.call_conv.call_function(builder, callee, types.none, given, [*values, part])
        with builder.if_then(status.is_error, likely=False):
            builder.store(_I32(1), builder.gep(shared, [_I32(0), _I32(1)]))
    builder.ret_void()
    return kernel
