"""Run by test_kernels_isa in processes of their own, which compile for the CPU that NUMBA_CPU_NAME names.

signatures OUT TEST..     run kernel tests and note with which types each compiled function was called
compile SIGNATURES OUT    compile those functions without running them; OUT/*.s is their assembly
run SIGNATURES OUT TEST.. all that on a machine that can run the code: the tests compile what is then read
"""

import importlib
import pickle
import pkgutil
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numba
import pytest
from numba.core.codegen import JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

from knltrain import kernels
from knltrain.kernels import _jit


def compiled_functions():
    """(file.name, dispatcher) of every kernel of the package: with all that is a part of it."""
    for module in pkgutil.walk_packages(kernels.__path__, "knltrain.kernels."):
        names = vars(importlib.import_module(module.name))
        for name, function in sorted(names.items()):
            own = isinstance(function, CPUDispatcher) and function.py_func.__module__ == module.name
            if own and not function.targetoptions.get("no_cpython_wrapper"):
                yield f"{module.name.removeprefix('knltrain.kernels.')}.{name}", function


def note_signatures(out, *tests):
    code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))
    Path(out).write_bytes(pickle.dumps({name: function.signatures for name, function in compiled_functions()}))
    return code


def assembly(function, signature, cpus):
    """(CPU, text) of what a kernel is on each of some CPUs: translated once, optimized for each, run on none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_jit, "_Kernel", _jit._Part)  # LLVM's intermediate code alone
        for method in ("load_overload", "save_overload"):
            patch.setattr(_jit._Cache, method, lambda *_: None)
        function.compile(signature)
    whole = function.overloads[signature].library
    with global_compiler_lock:
        whole._ensure_finalized()  # with all its parts
    translated = whole.get_llvm_str()
    for cpu in cpus:
        with pytest.MonkeyPatch.context() as patch, global_compiler_lock:
            patch.setattr(numba.config, "CPU_NAME", cpu)
            library = JITCPUCodegen(cpu).create_library(cpu)
            library.add_llvm_module(llvm.parse_assembly(translated))
            library._optimize_final_module()
        yield cpu, library.get_asm_str()


def compile_all(signatures, out):
    wanted = pickle.loads(Path(signatures).read_bytes())
    for name, function in compiled_functions():
        for number, signature in enumerate(wanted.get(name, ())):
            function.compile(signature)  # nothing to do where it ran
            text = function.inspect_asm(signature)
            if "ret" not in text:
                place = kernels.cache_folder()
                raise RuntimeError(f"{name} came from the cache, which holds no assembly: remove {place}")
            Path(out, f"{name}.{number}.s").write_text(text)
    Path(out, "complete").touch()


def run(signatures, out, *tests):
    code = note_signatures(signatures, *tests)
    return code or compile_all(signatures, out)


if __name__ == "__main__":
    sys.exit({"signatures": note_signatures, "compile": compile_all, "run": run}[sys.argv[1]](*sys.argv[2:]))
