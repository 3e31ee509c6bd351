"""Instructions that numba has no words for, of which the kernels are made."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils

from exafield.engine.lowlevel import WORD, at, intrinsic, load
from exafield.taskbench.kernels import LANES, LANES2

DOUBLE = ir.DoubleType()
QUAD, OCTET = ir.VectorType(WORD, 4), ir.VectorType(DOUBLE, 8)


@intrinsic
def real(typing: Any, base: Any, index: Any) -> Any:
    """The double of that index after an address."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return load(builder, at(builder, DOUBLE, *values))

    return types.float64(int64, int64), build


def _storing(kind: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        base, index, value = values
        builder.store(value, at(builder, kind, base, index), align=1)
        return context.get_dummy_value()

    return build


@intrinsic
def write(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Sets the 64-bit word of that index after an address."""
    return types.void(int64, int64, int64), _storing(WORD)


@intrinsic
def write_real(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Sets the double of that index after an address."""
    return types.void(int64, int64, types.float64), _storing(DOUBLE)


@intrinsic
def write_half(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Sets the 32-bit number of that index after an address to the low half of a word."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        half = ir.IntType(32)
        base, index, value = values
        builder.store(builder.trunc(value, half), at(builder, half, base, index))
        return context.get_dummy_value()

    return types.void(int64, int64, int64), build


@intrinsic
def copy_byte(typing: Any, target: Any, source: Any, index: Any) -> Any:
    """Copies byte `index`."""
    return types.void(int64, int64, int64), _copying(ir.IntType(8))


@intrinsic
def copy_quad(typing: Any, target: Any, source: Any, index: Any) -> Any:
    """Copies bytes 32 * `index` to 32 * `index` + 31."""
    return types.void(int64, int64, int64), _copying(QUAD)


def _copying(kind: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        target, source, index = values
        value = load(builder, at(builder, kind, source, index))
        builder.store(value, at(builder, kind, target, index), align=1)
        return context.get_dummy_value()

    return build


@intrinsic
def claim(typing: Any, base: Any) -> Any:
    """Turns the word at an address from 0 into 1; true for one caller only."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        swapped = builder.cmpxchg(pointer, WORD(0), WORD(1), "acq_rel", "monotonic")
        return builder.extract_value(swapped, 1)

    return types.boolean(int64), build


@intrinsic
def increase(typing: Any, base: Any, index: Any) -> Any:
    """Adds 1 to a 32-bit number that other processes may be adding to as well."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        half = ir.IntType(32)
        builder.atomic_rmw("add", at(builder, half, *values), half(1), "monotonic")
        return context.get_dummy_value()

    return types.void(int64, int64), build


def _chains(builder: Any, count: Any, chains: list[Any], step: Callable[[Any, Any], Any]) -> Any:
    """Repeats x = step(fma, x) `count` times for vectors of 8 doubles; gives them.

    LLVM divides them into the registers that the machine has. One call repeats them all, so that they stay there.
    """
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(OCTET, [OCTET] * 3), "llvm.fmuladd.v8f64"
    )  # fmuladd, not fma: a machine that has no such instruction multiplies and adds
    before, loop, after = builder.block, builder.append_basic_block("chains"), builder.append_basic_block("chained")
    builder.cbranch(builder.icmp_signed(">", count, WORD(0)), loop, after)
    builder.position_at_end(loop)
    number = builder.phi(WORD)
    values = [builder.phi(OCTET) for _ in chains]
    following = [step(fma, value) for value in values]
    done = builder.add(number, WORD(1))
    number.add_incoming(WORD(0), before)
    number.add_incoming(done, loop)
    for value, start, new in zip(values, chains, following, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", done, count), loop, after)
    builder.position_at_end(after)
    results = []
    for start, new in zip(chains, following, strict=True):
        result = builder.phi(OCTET)
        result.add_incoming(start, before)
        result.add_incoming(new, loop)
        results.append(result)
    return results


def _together(builder: Any, operation: Callable[[Any, Any], Any], vectors: list[Any]) -> Any:
    """All lanes of all vectors as one number."""
    while len(vectors) > 1:
        vectors = [operation(vectors[i], vectors[i + 1]) for i in range(0, len(vectors), 2)]
    lanes = [builder.extract_element(vectors[0], ir.IntType(32)(i)) for i in range(8)]
    while len(lanes) > 1:
        lanes = [operation(lanes[i], lanes[i + 1]) for i in range(0, len(lanes), 2)]
    return lanes[0]


@intrinsic
def squares(typing: Any, start: Any, count: Any) -> Any:
    """compute_bound: a = a * a + a, `count` times, for 64 doubles that begin with those at `start`; their product."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        starts = [load(builder, at(builder, OCTET, values[0], WORD(i))) for i in range(LANES // 8)]
        results = _chains(builder, values[1], starts, lambda fma, x: builder.call(fma, [x, x, x]))
        return _together(builder, builder.fmul, results)

    return types.float64(int64, int64), build


@intrinsic
def products(typing: Any, a: Any, b: Any, start: Any, count: Any) -> Any:
    """compute_bound2: c = c + a * b, `count` times, for 32 doubles that begin with those at `start`; their sum."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        a, b, start, count = values
        none = ir.Constant(OCTET, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
        a, b = (builder.shuffle_vector(builder.insert_element(none, x, ir.IntType(32)(0)), none, zeros) for x in (a, b))
        starts = [load(builder, at(builder, OCTET, start, WORD(i))) for i in range(LANES2 // 8)]
        results = _chains(builder, count, starts, lambda fma, x: builder.call(fma, [a, b, x]))
        return _together(builder, builder.fadd, results)

    return types.float64(types.float64, types.float64, int64, int64), build
