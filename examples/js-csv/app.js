// Which irises are in this table? CSV text in, JSON text out, written in JavaScript.
//
// The table has a header with the columns `sepal_length`, `sepal_width`, `petal_length` and `petal_width` in any order,
// among others, in centimetres. Several tables in one request are computed in one run of the graph.

import { Graph, InvalidInput, Strings, Tensor, model } from "windrose-guest";
import { parse } from "./csv.js";

const MEASURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"];
const SPECIES = ["setosa", "versicolor", "virginica"];
// Centimetres. No iris is larger: a table in millimetres is refused and not answered with nonsense.
const LARGEST = 30;

export const handler = model({
  inputs: { csv: ["bytes", [null]] },
  outputs: { json: ["bytes", [null]] },
  infer(request) {
    const { elements, shape } = request.strings("csv");
    const tables = new Strings(elements, shape).texts().map(flowers);
    const rows = tables.flat();
    const scores = rows.length ? classify(rows) : [];
    let next = 0;
    const answers = tables.map((table) => JSON.stringify(report(table.map((row) => [row, scores[next++]]))));
    return { json: new Strings(answers, shape) };
  },
});

/** The rows of one table: the line that each is on, and its four measures. */
function flowers(text, table) {
  const fail = (message) => {
    throw new InvalidInput(`table ${table}: ${message}`);
  };
  const [header, ...records] = parse(text, fail);
  if (!header) fail("it is empty");
  const titles = header.fields.map((title) => title.trim().toLowerCase().replaceAll(/[ .-]+/g, "_"));
  const columns = MEASURES.map((measure) => {
    const column = titles.indexOf(measure);
    return column >= 0 ? column : fail(`there is no column "${measure}" in its header`);
  });
  return records.map(({ line, fields }) => {
    if (fields.length !== titles.length) fail(`line ${line} has ${fields.length} fields, the header has ${titles.length}`);
    return { line, measures: columns.map((column) => measure(fields[column], `line ${line}: ${titles[column]}`, fail)) };
  });
}

function measure(field, place, fail) {
  const value = field.trim() === "" ? NaN : Number(field);
  return value > 0 && value <= LARGEST ? value : fail(`${place} is "${field}"; it must be above 0 and at most ${LARGEST} cm`);
}

/** The probabilities of the species, for each row. */
function classify(rows) {
  const features = Float32Array.from(rows.flatMap(({ measures }) => measures));
  const { probabilities } = Graph.byName("model").compute({ features: Tensor.from(features, [rows.length, MEASURES.length]) });
  const values = probabilities.data();
  return rows.map((_, row) => values.subarray(row * SPECIES.length, (row + 1) * SPECIES.length));
}

/** What a person wants to know of one table. */
function report(classified) {
  const counts = Object.fromEntries(SPECIES.map((species) => [species, 0]));
  const rows = classified.map(([{ line }, scores]) => {
    const best = scores.indexOf(Math.max(...scores));
    counts[SPECIES[best]] += 1;
    return { line, species: SPECIES[best], probability: Number(scores[best].toFixed(4)) };
  });
  return { counts, rows };
}
