// Write models for the Windrose gateway in JavaScript.
//
// A model is a WebAssembly component: it prepares what the caller sent, has a graph computed by the host through
// `wasi:nn`, and makes an answer of the result. This is a whole one, `app.js`:
//
//     import { Graph, model } from "windrose-guest";
//
//     export const handler = model({
//       infer: (request) => Graph.byName("model").run(request),
//     });
//
// Numbers are `Tensor`s, handles to memory of the host: one that is only passed on never enters the module. Reading one
// copies it in. Texts, files and pictures are `Strings`; a graph takes them as well, and what it returns of them is a
// `Tensor`, too, until `toStrings` reads it.
//
// The top level of a module runs once, when the component is built; a request starts from a snapshot of what it left
// behind. So build tables there. There is no host at that time: graphs and tensors belong in `infer`.

import { loadByName } from "wasi:nn/graph@0.2.0-rc-2024-10-28";
import { Tensor as HostTensor } from "wasi:nn/tensor@0.2.0-rc-2024-10-28";

/**
 * An element type of the Open Inference Protocol.
 * @typedef {"bool" | "uint8" | "uint16" | "uint32" | "uint64" | "int8" | "int16" | "int32" | "int64"
 *   | "fp16" | "bf16" | "fp32" | "fp64" | "bytes"} DataType
 */

// Element type -> how `wasi:nn` shows a tensor of it, and the array that holds its elements: the 16-bit floating-point
// types come as their bits.
const ELEMENTS = {
  bool: ["U8", Uint8Array],
  uint8: ["U8", Uint8Array],
  uint16: ["FP16", Uint16Array],
  uint32: ["I32", Uint32Array],
  uint64: ["I64", BigUint64Array],
  int8: ["U8", Int8Array],
  int16: ["FP16", Int16Array],
  int32: ["I32", Int32Array],
  int64: ["I64", BigInt64Array],
  fp16: ["FP16", Uint16Array],
  bf16: ["BF16", Uint16Array],
  fp32: ["FP32", Float32Array],
  fp64: ["FP64", Float64Array],
};

// What a tensor holds that says no more than its `wasi:nn` type.
const DEFAULTS = { U8: "uint8", I32: "int32", I64: "int64", FP16: "fp16", BF16: "bf16", FP32: "fp32", FP64: "fp64" };

// Bytes of the length before each byte string of a tensor.
const PREFIX = 4;

// Typed array -> element type.
const ARRAYS = new Map([
  [Uint8Array, "uint8"],
  [Uint8ClampedArray, "uint8"],
  [Uint16Array, "uint16"],
  [Uint32Array, "uint32"],
  [BigUint64Array, "uint64"],
  [Int8Array, "int8"],
  [Int16Array, "int16"],
  [Int32Array, "int32"],
  [BigInt64Array, "int64"],
  [Float32Array, "fp32"],
  [Float64Array, "fp64"],
]);

/**
 * The caller sent something that cannot be answered; the caller gets to read the message. Any other error that leaves
 * `infer` is the module's fault, and its message goes to the log.
 */
export class InvalidInput extends Error {
  name = "InvalidInput";
}

/** The host refused or failed to load or to compute a graph. `code` is one of `wasi:nn`, such as `invalid-argument`. */
export class GraphError extends Error {
  name = "GraphError";

  constructor(code, message) {
    super(`${message} (${code})`);
    this.code = code;
  }
}

/**
 * Numbers in the host's memory, or byte strings that a graph takes or returned. A tensor that was passed to `compute`, or returned, is gone: it cannot be used a second
 * time.
 */
export class Tensor {
  /** @param {HostTensor} handle */
  constructor(handle) {
    this.handle = handle;
  }

  /**
   * A tensor of a typed array, or of an array of numbers (nested ones say the shape).
   * @param {ArrayBufferView | any[]} values
   * @param {number[]} [shape] one dimension when not given and not nested
   * @param {DataType} [dtype] what the typed array holds when not given, or another type that it holds the elements of:
   *   `bool` for a `Uint8Array`, `fp16` or `bf16` for a `Uint16Array` of their bits; `fp32` for other arrays
   */
  static from(values, shape, dtype) {
    if (ArrayBuffer.isView(values)) {
      const found = ARRAYS.get(values.constructor);
      if (found === undefined) throw new TypeError(`a tensor cannot be made of ${values.constructor.name}`);
      const wanted = dtype ?? found;
      // Other elements would only lend their bits.
      if (wanted in ELEMENTS && ELEMENTS[wanted][1] !== ELEMENTS[found][1]) {
        throw new TypeError(`a ${values.constructor.name} holds ${found}, not ${wanted}`);
      }
      const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      return Tensor.fromBytes(bytes, shape ?? [values.length], wanted);
    }
    const nested = shapeOf(values);
    const wanted = dtype ?? "fp32";
    return Tensor.fromBytes(pack(values.flat(Infinity), wanted), shape ?? nested, wanted);
  }

  /**
   * A tensor of little-endian elements in row-major order.
   * @param {Uint8Array} bytes
   * @param {number[]} shape
   * @param {DataType} dtype
   */
  static fromBytes(bytes, shape, dtype) {
    if (!(dtype in ELEMENTS)) throw new TypeError(`a tensor cannot hold ${dtype}`);
    const [kind, array] = ELEMENTS[dtype];
    const size = product(shape) * array.BYTES_PER_ELEMENT;
    if (bytes.length !== size) {
      throw new RangeError(`shape [${shape}] of ${dtype} takes ${size} bytes, not ${bytes.length}`);
    }
    return new Tensor(new HostTensor(Uint32Array.from(shape), kind, bytes));
  }

  /**
   * Byte strings as a graph takes them; it shows the type `U8`, and their shape. `compute` does it by itself.
   * @param {Strings} strings
   */
  static fromStrings({ elements, shape }) {
    const bytes = new Uint8Array(elements.reduce((size, element) => size + PREFIX + element.length, 0));
    const lengths = new DataView(bytes.buffer);
    let at = 0;
    for (const element of elements) {
      lengths.setUint32(at, element.length, true);
      bytes.set(element, at + PREFIX);
      at += PREFIX + element.length;
    }
    return new Tensor(new HostTensor(Uint32Array.from(shape), "U8", bytes));
  }

  /** The dimensions, outermost first. */
  get shape() {
    return Array.from(this.handle.dimensions());
  }

  /** The element type as `wasi:nn` shows it: `FP16`, `FP32`, `FP64`, `BF16`, `U8`, `I32` or `I64`. */
  get type() {
    return this.handle.ty();
  }

  /** The elements, little-endian and in row-major order. */
  bytes() {
    return this.handle.data();
  }

  /**
   * The elements in row-major order as a typed array; `fp16` and `bf16` as their bits, see `toFloat32`.
   * @param {DataType} [dtype] how to read them where the `wasi:nn` type is not what was declared: `int8` for `U8`, say
   */
  data(dtype = DEFAULTS[this.type]) {
    const [kind, array] = ELEMENTS[dtype] ?? [];
    if (kind !== this.type) throw new TypeError(`a tensor of ${this.type} does not hold ${dtype}`);
    const bytes = this.bytes();
    if (kind === "U8" && bytes.length !== product(this.shape)) {
      throw new TypeError("the tensor holds byte strings, not numbers: read it with toStrings");
    }
    return view(bytes, array);
  }

  /** The byte strings of a tensor that holds such: one that a graph returned for an output of type BYTES, say. */
  toStrings() {
    const shape = this.shape;
    const bytes = this.bytes();
    // Strings take four bytes each beside their own. None at all look like no numbers at all.
    if (this.type !== "U8" || (bytes.length > 0 && bytes.length === product(shape))) {
      throw new TypeError(`a tensor of ${this.type} numbers holds no byte strings`);
    }
    return new Strings(split(bytes, product(shape)), shape);
  }

  /** Floating-point elements of any width in single precision. */
  toFloat32() {
    const values = this.data();
    switch (this.type) {
      case "FP32":
        return values;
      case "FP64":
        return Float32Array.from(values);
      case "FP16":
        return Float32Array.from(values, halfToNumber);
      case "BF16":
        return new Float32Array(Uint32Array.from(values, (bits) => bits << 16).buffer);
      default:
        throw new TypeError(`a tensor of ${this.type} holds no floating-point values`);
    }
  }
}

/** Byte strings with their shape, in row-major order: the datatype BYTES. */
export class Strings {
  /**
   * @param {(string | Uint8Array)[]} elements
   * @param {number[]} [shape]
   */
  constructor(elements, shape = [elements.length]) {
    this.elements = elements.map((element) => (typeof element === "string" ? new TextEncoder().encode(element) : element));
    this.shape = Array.from(shape);
    if (product(this.shape) !== this.elements.length) {
      throw new RangeError(`shape [${this.shape}] does not hold ${this.elements.length} strings`);
    }
  }

  /** The strings as text; one that is not UTF-8 is the caller's fault. */
  texts() {
    return this.elements.map((element, index) => {
      try {
        // A byte order mark is a character of the text like any other.
        return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(element);
      } catch {
        throw new InvalidInput(`string ${index} is not UTF-8`);
      }
    });
  }
}

/** One inference that a caller asks for. */
export class Request {
  constructor(request) {
    /** @type {Map<string, Tensor | Strings>} */
    this.inputs = new Map(request.inputs.map(({ name, value }) => [name, fromHost(value)]));
    /** The outputs that the caller wants; empty for all. */
    this.outputs = request.outputs;
    /** @type {Map<string, boolean | number | bigint | string>} */
    this.parameters = new Map(request.parameters.map(([name, parameter]) => [name, parameterFromHost(parameter)]));
  }

  /** The input of this name, which must be numbers. */
  tensor(name) {
    const value = this.#input(name);
    if (!(value instanceof Tensor)) throw new InvalidInput(`input "${name}" holds byte strings, not numbers`);
    return value;
  }

  /** The input of this name, which must be byte strings. */
  strings(name) {
    const value = this.#input(name);
    if (!(value instanceof Strings)) throw new InvalidInput(`input "${name}" holds numbers, not byte strings`);
    return value;
  }

  /** Whether the caller wants this output: one that asks for none gets all. */
  wants(output) {
    return this.outputs.length === 0 || this.outputs.includes(output);
  }

  #input(name) {
    const value = this.inputs.get(name);
    if (value === undefined) throw new InvalidInput(`input "${name}" is missing`);
    return value;
  }
}

/** An answer with parameters; where there are none, `infer` may return the object of outputs alone. */
export class Response {
  constructor(outputs, parameters = {}) {
    this.outputs = outputs;
    this.parameters = parameters;
  }
}

/** A graph of the model's manifest. */
export class Graph {
  constructor(handle) {
    this.handle = handle;
  }

  /** The graph that the manifest calls so. A graph deployed without a name of its own is called `model`. */
  static byName(name) {
    return new Graph(host(() => loadByName(name)));
  }

  /**
   * Computes the graph. Names are those of the graph's own inputs and outputs. An output that is byte strings is a tensor
   * as well: `toStrings` reads it.
   * @param {Record<string, Tensor | Strings>} inputs
   * @returns {Record<string, Tensor>}
   */
  compute(inputs) {
    const named = Object.entries(inputs).map(([name, value]) => [name, graphInput(name, value).handle]);
    const outputs = host(() => this.handle.initExecutionContext().compute(named));
    return Object.fromEntries(outputs.map(([name, handle]) => [name, new Tensor(handle)]));
  }

  /**
   * Passes every input of a request to the graph, and the outputs back: no number enters the module's memory, and no byte
   * string of an output.
   */
  run(request) {
    const outputs = this.compute(Object.fromEntries(request.inputs));
    return Object.fromEntries(Object.entries(outputs).filter(([name]) => request.wants(name)));
  }
}

/**
 * What a module exports: `export const handler = model({ ... })`.
 *
 * `infer` takes a `Request` and returns an object of outputs (or a `Response`), or a promise of one. `inputs` and `outputs`
 * declare names with type and shape, `{ text: ["bytes", [null]] }`; a dimension that differs from call to call is `null`.
 * Without them the model takes and returns what its graph of the name `graph` does.
 */
export function model({ infer, inputs, outputs, graph = "model" }) {
  if ((inputs === undefined) !== (outputs === undefined)) {
    throw new TypeError("a model declares both inputs and outputs, or neither");
  }
  const description =
    inputs === undefined
      ? { tag: "graph", val: graph }
      : { tag: "signature", val: { inputs: specs(inputs), outputs: specs(outputs) } };
  return {
    describe: () => description,
    infer(request) {
      try {
        const answer = infer(new Request(request));
        return typeof answer?.then === "function" ? answer.then(toHost).catch(refuse) : toHost(answer);
      } catch (error) {
        refuse(error);
      }
    },
  };
}

function specs(declared) {
  return Object.entries(declared).map(([name, [dataType, shape]]) => {
    if (dataType !== "bytes" && !(dataType in ELEMENTS)) throw new TypeError(`${name}: there is no type ${dataType}`);
    return { name, dataType, shape: shape.map((size) => size ?? undefined) };
  });
}

/** Throws what the contract calls a failure, by whose fault it is. */
function refuse(error) {
  if (error instanceof InvalidInput) throw { tag: "invalid-input", val: error.message };
  const place = error?.stack ? ` (${error.stack.trim().replaceAll("\n", "; ")})` : "";
  throw { tag: "internal", val: `${error}${place}` };
}

function toHost(answer) {
  const { outputs, parameters } = answer instanceof Response ? answer : { outputs: answer, parameters: {} };
  return {
    outputs: Object.entries(outputs).map(([name, value]) => ({ name, value: valueToHost(name, value) })),
    parameters: Object.entries(parameters).map(([name, value]) => [name, parameterToHost(value)]),
  };
}

function valueToHost(name, value) {
  if (value instanceof Tensor) return { tag: "tensor", val: value.handle };
  if (value instanceof Strings) {
    return { tag: "strings", val: { shape: Uint32Array.from(value.shape), elements: value.elements } };
  }
  throw new TypeError(`output "${name}" is neither a Tensor nor Strings`);
}

function graphInput(name, value) {
  if (value instanceof Strings) return Tensor.fromStrings(value);
  if (value instanceof Tensor) return value;
  throw new TypeError(`input "${name}" is neither a Tensor nor Strings`);
}

function fromHost({ tag, val }) {
  return tag === "tensor" ? new Tensor(val) : new Strings(val.elements, val.shape);
}

function parameterToHost(value) {
  switch (typeof value) {
    case "boolean":
      return { tag: "boolean", val: value };
    case "bigint":
      return { tag: "integer", val: value };
    case "number":
      return Number.isSafeInteger(value) ? { tag: "integer", val: BigInt(value) } : { tag: "number", val: value };
    case "string":
      return { tag: "text", val: value };
    default:
      throw new TypeError(`a parameter cannot be a ${typeof value}`);
  }
}

/** Whole numbers come as `number` where one holds them exactly, else as `bigint`. */
function parameterFromHost({ tag, val }) {
  return tag === "integer" && Number.isSafeInteger(Number(val)) ? Number(val) : val;
}

/** Calls the host, with its error as a `GraphError`. */
function host(call) {
  try {
    return call();
  } catch (error) {
    const { payload } = error;
    if (typeof payload?.code !== "function") throw error;
    throw new GraphError(payload.code(), payload.data());
  }
}

/** So many byte strings, each with its length before it. */
function split(bytes, count) {
  const lengths = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const elements = [];
  let at = 0;
  while (elements.length < count) {
    const start = at + PREFIX;
    at = start <= bytes.length ? start + lengths.getUint32(at, true) : start;
    if (at > bytes.length) throw new RangeError(`byte string ${elements.length} of ${count} is truncated`);
    elements.push(bytes.slice(start, at));
  }
  if (at !== bytes.length) throw new RangeError(`${bytes.length - at} bytes are left behind ${count} byte strings`);
  return elements;
}

function product(shape) {
  return shape.reduce((size, dimension) => size * dimension, 1);
}

/** The shape of nested arrays; rows of different lengths have none. */
function shapeOf(values) {
  const shape = [values.length];
  for (let level = values; Array.isArray(level[0]); ) {
    const size = level[0].length;
    if (level.some((row) => !Array.isArray(row) || row.length !== size)) {
      throw new RangeError("the rows of a tensor differ in length");
    }
    shape.push(size);
    level = level.flat();
  }
  return shape;
}

function pack(values, dtype) {
  if (!(dtype in ELEMENTS)) throw new TypeError(`a tensor cannot hold ${dtype}`);
  if (dtype === "fp16" || dtype === "bf16") throw new TypeError(`${dtype} takes a Uint16Array of its bits`);
  const array = ELEMENTS[dtype][1];
  const convert = array === BigInt64Array || array === BigUint64Array ? BigInt : Number;
  const numbers = values.map((value) => {
    if (!["number", "bigint", "boolean"].includes(typeof value)) throw new TypeError(`${value} is not a number`);
    return convert(dtype === "bool" ? Boolean(value) : value);
  });
  const packed = array.from(numbers);
  // Arrays of integers wrap what is too large for them, and cut what is not whole; of the others some round, as they must.
  const wrong = dtype.startsWith("fp") ? -1 : numbers.findIndex((number, index) => packed[index] !== number);
  if (wrong >= 0) throw new RangeError(`${values[wrong]} is no ${dtype}`);
  return new Uint8Array(packed.buffer);
}

/** Bytes as elements: the same memory where it is aligned, which it practically always is, else a copy. */
function view(bytes, array) {
  const aligned = bytes.byteOffset % array.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
  return new array(aligned.buffer, aligned.byteOffset, aligned.byteLength / array.BYTES_PER_ELEMENT);
}

/** IEEE half precision, exactly. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
