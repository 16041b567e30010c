"""How numba compiles what only other compiled code calls: to code for them to take in, and to nothing that runs alone.

Of every function numba makes a version that Python can call, one that C can call, and the processor's own code for all
of them; here that would be two thirds of what it does. What is called from compiled code alone needs none of these.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core import cgutils, typed_passes, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.types.misc import unliteral
from numba.extending import intrinsic


class _Library(JITCodeLibrary):
    """Code that is optimised and taken in by others, and never made into the processor's."""

    def _optimize_final_module(self) -> None:
        # Only what makes it smaller for those that take it in: they optimise it again, and the last of them in full.
        codegen = self._codegen
        manager, builder = codegen._module_pass_manager(
            loop_vectorize=codegen._loopvect, slp_vectorize=False, opt=codegen._opt_level, cost="cheap"
        )
        manager.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(typed_passes.NativeLowering):
    _name = "inner_lowering"

    def run_pass(self, state: Any) -> bool:
        """``NativeLowering`` in the form in which it prepares nothing for execution, and what callers need."""
        # Numba's lowering with a library that is never finalised: no wrapper for Python or C, no machine code, only
        # LLVM's code for callers to link and optimise.
        context, flags = state.targetctx, state.flags
        state.library = _Library(context.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        super().run_pass(state)
        name = state.func_id.func_qualname

        def called(*arguments: object) -> None:
            raise TypeError(f"{name} can be called from compiled code only")

        # Callers look the function up by its description and link its library; ``called`` stands where the entry for
        # Python would be.
        context.insert_user_function(called, state["cr"].fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        state["cr"] = state["cr"]._replace(cfunc=called)
        return True


class _Compiler(CompilerBase):
    def define_pipelines(self) -> list[Any]:
        """Numba's own steps, with ``_Lowering`` for the last but one."""
        steps = DefaultPassBuilder.define_nopython_pipeline(self.state)
        steps.passes = [
            (_Lowering, text) if step is typed_passes.NativeLowering else (step, text) for step, text in steps.passes
        ]
        steps.finalize()
        return [steps]


def inner(**options: Any) -> Any:
    """A decorator for what only compiled code calls. ``options`` as ``numba.njit`` takes them.

    Called from Python, such a function raises TypeError.
    """

    def decorated(function: Any) -> Any:
        made = numba.njit(pipeline_class=_Compiler, **options)(function)

        def add_overload(result: Any) -> None:
            # Not where numba's own calls from Python would look for code: there is none to run.
            made.overloads[tuple(result.signature.args)] = result

        made.add_overload = add_overload
        return made

    return decorated


def either(is_first: Any, first: Any, second: Any) -> Any:
    """What compiled code calls as ``run(arguments)``: ``first(*arguments)`` where ``is_first`` of their numba types is
    true, else ``second(*arguments)``; only the one that is called is compiled."""

    def typed(typing_context: Any, arguments: Any) -> Any:
        given = tuple(unliteral(kind) for kind in arguments.types)
        # Decided while types are inferred, so that the branch that is not taken is never typed and may not even fit the
        # types.
        called: Any = types.Dispatcher(first if is_first(*given) else second)
        inside: Any = called.get_call_type(typing_context, given, {})

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return context.get_function(called, inside)(builder, cgutils.unpack_tuple(builder, values[0]))

        return inside.return_type(arguments), generate

    return intrinsic(typed)


def late(function: Any) -> Any:
    """What compiled code calls as ``run(arguments)``: ``function(*arguments)``, which returns nothing, compiled after
    all else that its caller calls. Another process that compiles it at the same time will be done by then."""

    def typed(typing_context: Any, arguments: Any) -> Any:
        given = tuple(unliteral(kind) for kind in arguments.types)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            # Typed only when the caller's code is generated: type inference of the caller has ended by then, with all
            # that it compiled on the way.
            called: Any = types.Dispatcher(function)
            inside = called.get_call_type(typing_context, given, {})
            context.get_function(called, inside)(builder, cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(arguments), generate

    return intrinsic(typed)
