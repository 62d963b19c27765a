// Comma-separated values as RFC 4180 writes them: fields may be quoted, and then hold commas, line ends and doubled quotes.

/**
 * The records of a text that are not empty, each with the line that it starts on, counted from 1.
 * @param {string} text
 * @param {(message: string) => never} fail
 * @returns {{ line: number, fields: string[] }[]}
 */
export function parse(text, fail) {
  const records = [];
  let record = { line: 1, fields: [] };
  let line = 1;
  let at = text.startsWith("\ufeff") ? 1 : 0;
  while (at < text.length) {
    const [field, end] = text[at] === '"' ? quoted(text, at, line, fail) : plain(text, at);
    record.fields.push(field);
    line += field.split("\n").length - 1;
    at = end;
    if (text[at] === ",") {
      at += 1;
      // A comma at the very end stands before one more field, an empty one.
      if (at === text.length) record.fields.push("");
      continue;
    }
    if (at < text.length && text[at] !== "\n" && text[at] !== "\r") fail(`line ${line}: text after a closing quote`);
    at += text.startsWith("\r\n", at) ? 2 : 1;
    records.push(record);
    line += 1;
    record = { line, fields: [] };
  }
  if (record.fields.length) records.push(record);
  return records.filter(({ fields }) => fields.length > 1 || fields[0].trim() !== "");
}

/** A field that ends at the next comma or line end. */
function plain(text, start) {
  let end = start;
  while (end < text.length && text[end] !== "," && text[end] !== "\n" && text[end] !== "\r") end += 1;
  return [text.slice(start, end), end];
}

/** A field between quotes, and where it ends. */
function quoted(text, start, line, fail) {
  let field = "";
  for (let at = start + 1; ; ) {
    const quote = text.indexOf('"', at);
    if (quote < 0) fail(`line ${line}: a quote is not closed`);
    field += text.slice(at, quote);
    if (text[quote + 1] !== '"') return [field, quote + 1];
    field += '"';
    at = quote + 2;
  }
}
