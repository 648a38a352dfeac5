// The report that compat-tests/run reads: one line a scenario.
import assert from "node:assert/strict";

export const BUSYBOX = "compat-busybox:1";
export const REDIS = "compat-redis:1";
export const POSTGRES = "compat-postgres:1";

/** Runs scenarios in order; one whose name lacks the program's first argument is passed over. */
export async function report(scenarios) {
  for (const [name, scenario] of Object.entries(scenarios)) {
    if (!name.includes(process.argv[2] ?? "")) continue;
    const start = performance.now();
    try {
      await scenario();
      console.log(`ok\t${name}\t${((performance.now() - start) / 1000).toFixed(2)}`);
    } catch (err) {
      console.log(`red\t${name}\t${String(err?.stack ?? err).replaceAll(/\s+/g, " ").slice(0, 1500)}`);
    }
  }
}

/** Asks again until there is an answer; throws after `seconds`. */
export async function until(ask, what, seconds = 30) {
  for (const deadline = Date.now() + seconds * 1000; ; ) {
    const value = await ask();
    if (value) return value;
    assert.ok(Date.now() < deadline, `not within ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** All that a stream gives, as text. */
export async function text(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts).toString();
}
