"""Instructions that numba has no words for, and how functions are compiled here."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,no-any-return"

import inspect
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import int64, types

WORD = ir.IntType(64)


def native(function: Callable[..., Any], *, parallel: bool = False) -> Any:
    """Compiled when called; without what type checkers put around functions in tests, which cannot be compiled."""
    return numba.njit(inspect.unwrap(function), nogil=True, cache=True, error_model="numpy", parallel=parallel)


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that writes its own instructions."""
    return numba.extending.intrinsic(inspect.unwrap(function))


def at(builder: Any, kind: Any, base: Any, index: Any) -> Any:
    """Pointer to element `index` of type `kind` after an address."""
    return builder.gep(builder.inttoptr(base, kind.as_pointer()), [index])


def load(builder: Any, pointer: Any) -> Any:
    """What is at a pointer, which need not be a multiple of its size."""
    loaded = builder.load(pointer)
    loaded.align = 1
    return loaded


@intrinsic
def read(typing: Any, base: Any, index: Any) -> Any:
    """The 64-bit word of that index after an address."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return load(builder, at(builder, WORD, *values))

    return int64(int64, int64), build


@intrinsic
def acquire(typing: Any, where: Any) -> Any:
    """Reads a flag; what was written before it was raised is seen after it."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(values[0], WORD.as_pointer()), "acquire", 8)

    return int64(int64), build


@intrinsic
def release(typing: Any, where: Any, value: Any) -> Any:
    """Raises a flag; what was written before is seen by who reads it."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], builder.inttoptr(values[0], WORD.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(int64, int64), build


@intrinsic
def invoke(typing: Any, function: Any, arguments: Any) -> Any:
    """Calls the C function at an address with words; gives a word."""
    return int64(int64, types.UniTuple(int64, len(arguments))), _calling(WORD, len(arguments))


@intrinsic
def invoke_int(typing: Any, function: Any, arguments: Any) -> Any:
    """Calls the C function at an address with words; it gives an int."""
    return int64(int64, types.UniTuple(int64, len(arguments))), _calling(ir.IntType(32), len(arguments))


def _calling(result: Any, count: int) -> Any:
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(result, [WORD] * count)
        words = [builder.extract_value(values[1], index) for index in range(count)]
        value = builder.call(builder.inttoptr(values[0], kind.as_pointer()), words)
        return value if result is WORD else builder.sext(value, WORD)

    return build
