#!/usr/bin/env node
// Makes a component of one JavaScript file and what it imports: node build.mjs APP.js OUT.wasm --wit DIR [--sdk FILE]
//
// The sources are bundled first, so packages of npm can be used. Which parts of the system the engine has is named by the
// package.json beside APP.js, as `"windrose": { "features": [...] }`: `stdio` for the console, `clocks` for the time,
// `random` for random numbers that differ. All three are the default; each that is left out saves imports and start-up.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { componentize } from "@bytecodealliance/componentize-js";
import { build } from "esbuild";

const OPTIONAL = ["stdio", "clocks", "random"];
const here = dirname(fileURLToPath(import.meta.url));
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    wit: { type: "string", default: join(here, "wit") },
    sdk: { type: "string", default: join(here, "windrose-guest.js") },
  },
});
if (positionals.length !== 2) {
  console.error("usage: node build.mjs APP.js OUT.wasm [--wit DIR] [--sdk FILE]");
  process.exit(2);
}
const [source, target] = positionals.map((path) => resolve(path));

/** The features that the package.json beside the source names. */
async function features() {
  const text = await readFile(join(dirname(source), "package.json"), "utf8").catch(() => "{}");
  const named = JSON.parse(text).windrose?.features ?? OPTIONAL;
  const unknown = named.filter((feature) => !OPTIONAL.includes(feature));
  if (unknown.length) throw new Error(`package.json: no feature ${unknown}; there are: ${OPTIONAL.join(", ")}`);
  return named;
}

const folder = await mkdtemp(join(tmpdir(), "windrose-js-"));
try {
  const wanted = await features();
  const bundle = join(folder, "app.js");
  await build({
    entryPoints: [source],
    outfile: bundle,
    bundle: true,
    format: "esm",
    platform: "neutral",
    mainFields: ["module", "main"],
    target: "es2022",
    external: ["wasi:*"],
    alias: { "windrose-guest": resolve(options.sdk) },
    logLevel: "warning",
  });
  // Source paths in messages are relative to the current folder.
  process.chdir(folder);
  const { component } = await componentize({
    sourcePath: bundle,
    witPath: resolve(options.wit),
    worldName: "windrose:model/model",
    disableFeatures: [...OPTIONAL.filter((feature) => !wanted.includes(feature)), "http", "fetch-event"],
  });
  await writeFile(target, component);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await rm(folder, { recursive: true, force: true });
}
