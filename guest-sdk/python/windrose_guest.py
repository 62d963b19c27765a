"""Write models for the Windrose gateway in Python.

A model is a WebAssembly component: it prepares what the caller sent, has a graph computed by the host through
`wasi:nn`, and makes an answer of the result. This is a whole one, `app.py`:

    from windrose_guest import Graph, export

    @export
    def infer(request):
        return Graph.by_name("model").run(request)

Numbers are `Tensor`s, handles to memory of the host: one that is only passed on never enters the module. Reading one
copies it in. Texts, files and pictures are `Strings`; a graph takes them as well, and what it returns of them is a
`Tensor`, too, until `to_strings` reads it.

The top level of a module runs once, when the component is built; a request starts from a snapshot of what it left behind.
So load tables there. There is no host at that time: graphs and tensors belong in `infer`.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from componentize_py_types import Err
from wit_world.imports import graph as _graph
from wit_world.imports import tensor as _tensor
from wit_world.imports import types as _types
from wit_world.imports.tensor import TensorType
from wit_world.imports.types import DataType

__all__ = ["DataType", "Graph", "GraphError", "InvalidInput", "Request", "Response", "Strings", "Tensor", "TensorType",
           "export"]

# Element type -> how `wasi:nn` shows a tensor of it, and the format of one element (as in `struct`; BF16 has none).
_ELEMENTS = {
    DataType.BOOL: (TensorType.U8, "?"),
    DataType.UINT8: (TensorType.U8, "B"),
    DataType.UINT16: (TensorType.FP16, "H"),
    DataType.UINT32: (TensorType.I32, "I"),
    DataType.UINT64: (TensorType.I64, "Q"),
    DataType.INT8: (TensorType.U8, "b"),
    DataType.INT16: (TensorType.FP16, "h"),
    DataType.INT32: (TensorType.I32, "i"),
    DataType.INT64: (TensorType.I64, "q"),
    DataType.FP16: (TensorType.FP16, "e"),
    DataType.BF16: (TensorType.BF16, None),
    DataType.FP32: (TensorType.FP32, "f"),
    DataType.FP64: (TensorType.FP64, "d"),
}
# The length before each byte string of a tensor.
_PREFIX = struct.Struct("<I")
# What a tensor holds that says no more than its `wasi:nn` type.
_DEFAULT = {
    TensorType.U8: DataType.UINT8,
    TensorType.I32: DataType.INT32,
    TensorType.I64: DataType.INT64,
    TensorType.FP16: DataType.FP16,
    TensorType.BF16: DataType.BF16,
    TensorType.FP32: DataType.FP32,
    TensorType.FP64: DataType.FP64,
}


class InvalidInput(Exception):
    """The caller sent something that cannot be answered; the caller gets to read the message. Any other exception that
    leaves `infer` is the module's fault, and its message goes to the log."""


class GraphError(Exception):
    """The host refused or failed to load or to compute a graph."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        # One of the codes of `wasi:nn`, for example `invalid-argument`.
        self.code = code


class Tensor:
    """Numbers in the host's memory, or byte strings that a graph takes or returned.

    A tensor that was passed to `compute`, or returned, is gone: it cannot be used a second time.
    """

    def __init__(self, handle: _tensor.Tensor) -> None:
        self._handle = handle

    @staticmethod
    def from_bytes(data: bytes, shape: Sequence[int], dtype: DataType = DataType.FP32) -> "Tensor":
        """A tensor of little-endian elements in row-major order."""
        if dtype is DataType.BYTES:
            raise ValueError("byte strings have no elements of one size; use from_strings")
        kind, width = _ELEMENTS[dtype][0], _width(dtype)
        if len(data) != prod(shape) * width:
            raise ValueError(f"shape {list(shape)} of {dtype.name} takes {prod(shape) * width} bytes, not {len(data)}")
        return Tensor(_tensor.Tensor(list(shape), kind, bytes(data)))

    @staticmethod
    def from_list(values: Sequence, dtype: DataType = DataType.FP32, shape: Sequence[int] | None = None) -> "Tensor":
        """A tensor of numbers: nested lists, or a flat list (or `array`) with a shape."""
        flat, nested = _flatten(values)
        return Tensor.from_bytes(_pack(flat, dtype), nested if shape is None else shape, dtype)

    @staticmethod
    def from_strings(strings: "Strings") -> "Tensor":
        """Byte strings as a graph takes them; it shows the type U8, and their shape. `compute` does it by itself."""
        data = b"".join(part for element in strings.elements for part in (_PREFIX.pack(len(element)), element))
        return Tensor(_tensor.Tensor(list(strings.shape), TensorType.U8, data))

    @property
    def shape(self) -> list[int]:
        """The dimensions, outermost first."""
        return list(self._handle.dimensions())

    @property
    def type(self) -> TensorType:
        """The element type as `wasi:nn` shows it."""
        return self._handle.ty()

    def to_bytes(self) -> bytes:
        """The elements, little-endian and in row-major order."""
        return self._handle.data()

    def to_flat(self, dtype: DataType | None = None) -> Sequence:
        """The elements in row-major order, as a sequence of Python numbers. `dtype` says how to read them where the
        `wasi:nn` type is not what was declared: BOOL for U8, say."""
        dtype = dtype or _DEFAULT[self.type]
        if dtype is DataType.BYTES:
            raise ValueError("byte strings are no numbers; use to_strings")
        if _ELEMENTS[dtype][0] is not self.type:
            raise ValueError(f"a tensor of {self.type.name} does not hold {dtype.name}")
        data = self.to_bytes()
        if self.type is TensorType.U8 and len(data) != prod(self.shape):
            raise ValueError("the tensor holds byte strings, not numbers; use to_strings")
        return _unpack(data, dtype)

    def to_list(self, dtype: DataType | None = None) -> list:
        """The elements as nested lists, one level for each dimension."""
        values, shape = list(self.to_flat(dtype)), self.shape
        for axis in range(len(shape) - 1, 0, -1):
            size = shape[axis]
            values = [values[row * size:(row + 1) * size] for row in range(prod(shape[:axis]))]
        return values

    def to_strings(self) -> "Strings":
        """The byte strings of a tensor that holds such: one that a graph returned for an output of type BYTES, say."""
        shape, data = self.shape, self.to_bytes()
        # Strings take four bytes each beside their own. None at all look like no numbers at all.
        if self.type is not TensorType.U8 or data and len(data) == prod(shape):
            raise ValueError(f"a tensor of {self.type.name} numbers holds no byte strings")
        return Strings(_split(data, prod(shape)), shape)


@dataclass
class Strings:
    """Byte strings with their shape, in row-major order: the datatype BYTES."""

    elements: list[bytes]
    shape: list[int]

    def __init__(self, elements: Sequence[bytes | str], shape: Sequence[int] | None = None) -> None:
        self.elements = [item.encode() if isinstance(item, str) else bytes(item) for item in elements]
        self.shape = [len(self.elements)] if shape is None else list(shape)
        if prod(self.shape) != len(self.elements):
            raise ValueError(f"shape {self.shape} does not hold {len(self.elements)} strings")

    def texts(self) -> list[str]:
        """The strings as text; one that is not UTF-8 is the caller's fault."""
        texts = []
        for index, element in enumerate(self.elements):
            try:
                texts.append(element.decode())
            except UnicodeDecodeError:
                raise InvalidInput(f"string {index} is not UTF-8") from None
        return texts


@dataclass
class Request:
    """One inference that a caller asks for."""

    inputs: dict[str, Tensor | Strings]
    # The outputs that the caller wants; empty for all.
    outputs: list[str] = field(default_factory=list)
    parameters: dict[str, bool | int | float | str] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """The input of this name, which must be numbers."""
        value = self._input(name)
        if not isinstance(value, Tensor):
            raise InvalidInput(f'input "{name}" holds byte strings, not numbers')
        return value

    def strings(self, name: str) -> Strings:
        """The input of this name, which must be byte strings."""
        value = self._input(name)
        if not isinstance(value, Strings):
            raise InvalidInput(f'input "{name}" holds numbers, not byte strings')
        return value

    def wants(self, output: str) -> bool:
        """Whether the caller wants this output: one that asks for none gets all."""
        return not self.outputs or output in self.outputs

    def _input(self, name: str) -> Tensor | Strings:
        if name not in self.inputs:
            raise InvalidInput(f'input "{name}" is missing')
        return self.inputs[name]


@dataclass
class Response:
    """An answer with parameters; where there are none, `infer` may return the dictionary of outputs alone."""

    outputs: Mapping[str, Tensor | Strings]
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


class Graph:
    """A graph of the model's manifest."""

    def __init__(self, handle: _graph.Graph) -> None:
        self._handle = handle

    @staticmethod
    def by_name(name: str) -> "Graph":
        """The graph that the manifest calls so. A graph deployed without a name of its own is called `model`."""
        return Graph(_host(_graph.load_by_name, name))

    def compute(self, inputs: Mapping[str, Tensor | Strings]) -> dict[str, Tensor]:
        """Computes the graph. Names are those of the graph's own inputs and outputs. An output that is byte strings is a
        tensor as well: `to_strings` reads it."""
        context = _host(self._handle.init_execution_context)
        outputs = _host(context.compute, [(name, _graph_input(name, value)._handle) for name, value in inputs.items()])
        return {name: Tensor(handle) for name, handle in outputs}

    def run(self, request: Request) -> dict[str, Tensor]:
        """Passes every input of a request to the graph, and the outputs back: no number enters the module's memory, and no
        byte string of an output."""
        outputs = self.compute(request.inputs)
        return {name: tensor for name, tensor in outputs.items() if request.wants(name)}


def export(infer: Callable | None = None, *, inputs: Mapping[str, tuple] | None = None,
           outputs: Mapping[str, tuple] | None = None, graph: str = "model") -> Callable:
    """Makes a function the export of this module, as a decorator: it takes a `Request` and returns a dictionary of outputs
    (or a `Response`).

        @export(inputs={"text": (DataType.BYTES, [None])}, outputs={"score": (DataType.FP32, [None, 2])})

    A dimension that differs from call to call is `None`. Without inputs and outputs the model takes and returns what its
    graph of the name `graph` does.
    """
    if (inputs is None) != (outputs is None):
        raise ValueError("export needs both inputs and outputs, or neither")
    if inputs is None or outputs is None:
        description: _types.Description = _types.Description_Graph(graph)
    else:
        description = _types.Description_Signature(_types.Signature(_specs(inputs), _specs(outputs)))

    def decorate(function: Callable) -> Callable:
        class Handler:
            def describe(self) -> _types.Description:
                return description

            def infer(self, request: _types.Request) -> _types.Response:
                return _answer(function, request)

        sys.modules[function.__module__].Handler = Handler
        return function

    return decorate if infer is None else decorate(infer)


def _specs(declared: Mapping[str, tuple]) -> list[_types.TensorSpec]:
    return [_types.TensorSpec(name, dtype, list(shape)) for name, (dtype, shape) in declared.items()]


def _answer(function: Callable, request: _types.Request) -> _types.Response:
    """One call of `infer`, with what it raises told by whose fault it is."""
    try:
        inputs = {named.name: _value(named.value) for named in request.inputs}
        parameters = {name: parameter.value for name, parameter in request.parameters}
        answer = function(Request(inputs, request.outputs, parameters))
        if not isinstance(answer, Response):
            answer = Response(answer)
        return _types.Response([_types.NamedValue(name, _wit_value(name, value)) for name, value in answer.outputs.items()],
                               [(name, _wit_parameter(value)) for name, value in answer.parameters.items()])
    except InvalidInput as error:
        raise Err(_types.Failure_InvalidInput(str(error))) from None
    except Exception as error:
        raise Err(_types.Failure_Internal(_report(error))) from None


def _report(error: BaseException) -> str:
    """A traceback in one line. `traceback` would look for the sources, which are not in the sandbox."""
    places, step = [], error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        places.append(f"{code.co_filename}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    return f"{type(error).__name__}: {error} ({'; '.join(places)})"


def _host(function: Callable, *arguments: object):
    """Calls the host, with its error as a `GraphError`."""
    try:
        return function(*arguments)
    except Err as error:
        code = error.value.code().name.lower().replace("_", "-")
        message = error.value.data()
    raise GraphError(code, message)


def _graph_input(name: str, value: Tensor | Strings) -> Tensor:
    if isinstance(value, Strings):
        return Tensor.from_strings(value)
    if isinstance(value, Tensor):
        return value
    raise TypeError(f"input {name!r} is neither a Tensor nor Strings but {type(value).__name__}")


def _value(value: _types.Value) -> Tensor | Strings:
    if isinstance(value, _types.Value_Tensor):
        return Tensor(value.value)
    return Strings(value.value.elements, value.value.shape)


def _wit_value(name: str, value: Tensor | Strings) -> _types.Value:
    if isinstance(value, Tensor):
        return _types.Value_Tensor(value._handle)
    if isinstance(value, Strings):
        return _types.Value_Strings(_types.ByteStrings(value.shape, value.elements))
    raise TypeError(f"output {name!r} is neither a Tensor nor Strings but {type(value).__name__}")


def _wit_parameter(value: bool | int | float | str) -> _types.Parameter:
    # `bool` is an `int` as well, so it comes first.
    for kind, case in ((bool, _types.Parameter_Boolean), (int, _types.Parameter_Integer),
                       (float, _types.Parameter_Number), (str, _types.Parameter_Text)):
        if isinstance(value, kind):
            return case(value)
    raise TypeError(f"a parameter cannot be {type(value).__name__}")


def _flatten(values: Sequence) -> tuple[Sequence, list[int]]:
    """The numbers of nested lists in row-major order, and the shape; lists of different lengths have none."""
    shape, flat = [len(values)], values
    while len(flat) and isinstance(flat[0], (list, tuple, array)):
        size = len(flat[0])
        if any(not isinstance(row, (list, tuple, array)) or len(row) != size for row in flat):
            raise ValueError("the rows of a tensor differ in length")
        shape.append(size)
        flat = [value for row in flat for value in row]
    return flat, shape


def _width(dtype: DataType) -> int:
    """Bytes of one element."""
    code = _ELEMENTS[dtype][1]
    return 2 if code is None else struct.calcsize("<" + code)


def _split(data: bytes, count: int) -> list[bytes]:
    """So many byte strings, each with its length before it."""
    elements, at = [], 0
    while len(elements) < count:
        start = at + _PREFIX.size
        at = start + _PREFIX.unpack_from(data, at)[0] if start <= len(data) else start
        if at > len(data):
            raise ValueError(f"byte string {len(elements)} of {count} is truncated")
        elements.append(data[start:at])
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left behind {count} byte strings")
    return elements


def _pack(values: Sequence, dtype: DataType) -> bytes:
    if dtype is DataType.BYTES:
        raise ValueError("byte strings are no numbers; use Strings")
    code = _ELEMENTS[dtype][1]
    if code is None:
        return _pack_bf16(values)
    if isinstance(values, array) and values.typecode == code:
        return values.tobytes()
    if code in "?e":
        return struct.pack(f"<{len(values)}{code}", *values)
    return array(code, values).tobytes()


def _unpack(data: bytes, dtype: DataType) -> Sequence:
    code = _ELEMENTS[dtype][1]
    if code is None:
        return _unpack_bf16(data)
    if code in "?e":
        return struct.unpack(f"<{len(data) // _width(dtype)}{code}", data)
    values = array(code)
    values.frombytes(data)
    return values


def _pack_bf16(values: Sequence) -> bytes:
    """The upper half of single precision, rounded to nearest, ties to even; NaN stays NaN."""
    halves = array("H")
    for value, bits in zip(values, array("I", array("f", values).tobytes())):
        halves.append(0x7FC0 if value != value else bits + 0x7FFF + (bits >> 16 & 1) >> 16)
    return halves.tobytes()


def _unpack_bf16(data: bytes) -> Sequence:
    bits = array("H")
    bits.frombytes(data)
    values = array("f")
    values.frombytes(array("I", [half << 16 for half in bits]).tobytes())
    return values
