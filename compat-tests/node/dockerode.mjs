// dockerode, as a Node.js program that manages containers uses it.
import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createWriteStream } from "node:fs";
import Docker from "dockerode";
import { BUSYBOX, report, text, until } from "./scenarios.mjs";

const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace("unix://", "") });

const create = (name, script, more = {}) => docker.createContainer({ name, Image: BUSYBOX, Cmd: ["sh", "-c", script], ...more });

async function start(name, script, more) {
  const container = await create(name, script, more);
  await container.start();
  return container;
}

/** Standard output and error of a stream of both. */
async function both(container, stream) {
  const [out, err] = [new PassThrough(), new PassThrough()];
  container.modem.demuxStream(stream, out, err);
  stream.on("end", () => (out.end(), err.end()));
  stream.on("close", () => (out.end(), err.end()));
  return Promise.all([text(out), text(err)]);
}

/** The status and message of a call that must be refused. */
async function refusal(promise) {
  try {
    await promise;
  } catch (err) {
    return [err.statusCode, err.json?.message ?? err.message];
  }
  assert.fail("it was not refused");
}

await report({
  "the engine": async () => {
    assert.equal(String(await docker.ping()), "OK");
    assert.equal((await docker.version()).Os, "linux");
    assert.ok((await docker.info()).NCPU > 0);
    assert.ok("Images" in (await docker.df()));
  },

  containers: async () => {
    const [out] = await docker.run(BUSYBOX, ["sh", "-c", "exit 6"], new PassThrough(), { HostConfig: { AutoRemove: true } });
    assert.equal(out.StatusCode, 6);
    const container = await start("node-a", "trap 'exit 4' TERM; while true; do sleep 0.1; done", { Env: ["A=b"], Labels: { kind: "node" }, HostConfig: { Memory: 64 << 20 } });
    const found = await container.inspect();
    assert.deepEqual([found.State.Running, found.Config.Labels.kind, found.HostConfig.Memory], [true, "node", 64 << 20]);
    assert.deepEqual((await docker.listContainers({ filters: { label: ["kind=node"] } })).map((item) => item.Names[0]), ["/node-a"]);
    assert.ok((await container.top({ ps_args: "-o pid,comm" })).Processes.length > 0);
    await container.pause();
    assert.equal((await container.inspect()).State.Status, "paused");
    await container.unpause();
    await container.rename({ name: "node-b" });
    await container.update({ Memory: 128 << 20, MemorySwap: -1 });
    await container.stop({ t: 10 });
    assert.equal((await container.wait()).StatusCode, 4);
    await container.restart();
    await container.kill();
    assert.equal((await container.wait()).StatusCode, 137);
    await container.remove();
    assert.equal((await refusal(container.inspect()))[0], 404);
  },

  "wait with a condition": async () => {
    const container = await create("node-wait", "exit 9");
    const removed = container.wait({ condition: "removed" });
    await container.start();
    assert.equal((await container.wait()).StatusCode, 9);
    await container.remove();
    assert.equal((await removed).StatusCode, 9);
  },

  exec: async () => {
    const container = await start("node-exec", "while true; do sleep 0.1; done");
    const exec = await container.exec({ Cmd: ["sh", "-c", "read line; echo $A $line; echo bad >&2; exit 5"], AttachStdin: true, AttachStdout: true, AttachStderr: true, Env: ["A=x"] });
    const stream = await exec.start({ hijack: true, stdin: true });
    stream.write("typed\n");
    assert.deepEqual(await both(container, stream), ["x typed\n", "bad\n"]);
    assert.equal((await exec.inspect()).ExitCode, 5);
    const tty = await container.exec({ Cmd: ["tty"], AttachStdout: true, Tty: true });
    assert.match(await text(await tty.start({ Tty: true })), /\/dev\/pts\//);
    await container.remove({ force: true });
  },

  "attach both ways": async () => {
    const container = await create("node-attach", "read line; echo got $line; echo bad >&2", { OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true });
    const stream = await container.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
    await container.start();
    stream.write("word\n");
    assert.deepEqual(await both(container, stream), ["got word\n", "bad\n"]);
    await container.wait();
    await container.remove();
  },

  "logs follow": async () => {
    const container = await start("node-logs", "echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.1; done; echo three");
    await until(async () => String(await container.logs({ stdout: true, stderr: true })).includes("two"), "two lines");
    const stream = await container.logs({ follow: true, stdout: true, stderr: true });
    const seen = both(container, stream);
    await (await container.exec({ Cmd: ["touch", "/go"] })).start({ Detach: true });
    assert.deepEqual(await seen, ["one\nthree\n", "two\n"]);
    await container.wait();
    await container.remove();
  },

  events: async () => {
    const since = Math.floor(Date.now() / 1000);
    const container = await start("node-events", "exit 3");
    await container.wait();
    await container.remove();
    const stream = await docker.getEvents({ since, until: since + 3, filters: { container: ["node-events"] } });
    const events = (await text(stream)).trim().split("\n").map((line) => JSON.parse(line));
    assert.deepEqual(events.map((event) => event.Action), ["create", "start", "die", "destroy"]);
    assert.equal(events[2].Actor.Attributes.exitCode, "3");
  },

  stats: async () => {
    const container = await start("node-stats", "sleep 1000");
    const once = await container.stats({ stream: false });
    assert.ok(once.memory_stats.usage > 0);
    const stream = await container.stats({ stream: true });
    let seen = "";
    for await (const part of stream) {
      seen += part;
      if (seen.split("\n").length > 2) break;
    }
    const [first, second] = seen.trim().split("\n").map((line) => JSON.parse(line));
    assert.equal(second.precpu_stats.system_cpu_usage, first.cpu_stats.system_cpu_usage);
    await container.remove({ force: true });
  },

  archive: async () => {
    const container = await start("node-archive", "mkdir -p /d; echo hello > /d/f");
    await container.wait();
    const got = await text(await container.getArchive({ path: "/d" }));
    assert.ok(got.includes("d/f") && got.includes("hello\n"));
    const tar = await container.getArchive({ path: "/d/f" });
    await container.putArchive(tar, { path: "/tmp" });
    assert.ok((await text(await container.getArchive({ path: "/tmp/f" }))).includes("hello\n"));
    assert.ok((await container.changes()).some((change) => change.Path === "/tmp/f"));
    assert.ok((await text(await container.export())).includes("bin/busybox"));
    await container.remove();
  },

  images: async () => {
    const image = docker.getImage(BUSYBOX);
    await image.tag({ repo: "node-image", tag: "two" });
    assert.equal((await docker.getImage("node-image:two").inspect()).Id, (await image.inspect()).Id);
    const container = await start("node-commit", "echo new > /new");
    await container.wait();
    await container.commit({ repo: "node-image", tag: "three", comment: "why" });
    assert.equal((await docker.getImage("node-image:three").history())[0].Comment, "why");
    await container.remove();
    const path = `${process.env.COMPAT_TMP}/image.tar`;
    await pipeline(await docker.getImage("node-image:three").get(), createWriteStream(path));
    for (const tag of ["two", "three"]) await docker.getImage(`node-image:${tag}`).remove();
    const answer = await text(await docker.loadImage(path));
    assert.match(answer, /Loaded image: node-image:three/);
    await docker.getImage("node-image:three").remove();
    assert.equal((await refusal(docker.getImage("node-image:three").inspect()))[0], 404);
  },

  networks: async () => {
    const network = await docker.createNetwork({ Name: "node-net", Labels: { a: "b" } });
    const server = await start("node-server", "mkdir /w; echo found > /w/x; exec httpd -f -h /w", { ExposedPorts: { "80/tcp": {} }, HostConfig: { PortBindings: { "80/tcp": [{ HostIp: "127.0.0.1", HostPort: "" }] } } });
    await network.connect({ Container: server.id, EndpointConfig: { Aliases: ["site"] } });
    const out = new PassThrough();
    const answer = text(out);
    const [ended] = await docker.run(BUSYBOX, ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://site/x && exit; sleep 0.3; done"], out, { Tty: false, HostConfig: { AutoRemove: true, NetworkMode: "node-net" } });
    out.end();
    assert.equal(ended.StatusCode, 0);
    assert.ok((await answer).includes("found\n"));
    const port = (await server.inspect()).NetworkSettings.Ports["80/tcp"][0].HostPort;
    assert.equal(await (await fetch(`http://127.0.0.1:${port}/x`)).text(), "found\n");
    const [status, message] = await refusal(network.remove());
    assert.equal(status, 403);
    assert.match(message, /has active endpoints/);
    await network.disconnect({ Container: server.id });
    await network.remove();
    await server.remove({ force: true });
  },

  volumes: async () => {
    await docker.createVolume({ Name: "node-vol", Labels: { a: "b" } });
    const container = await start("node-volume", "echo kept > /v/x", { HostConfig: { Binds: ["node-vol:/v"] } });
    await container.wait();
    assert.equal((await refusal(docker.getVolume("node-vol").remove()))[0], 409);
    await container.remove();
    assert.deepEqual((await docker.listVolumes({ filters: { label: ["a=b"] } })).Volumes.map((volume) => volume.Name), ["node-vol"]);
    await docker.getVolume("node-vol").remove();
    assert.equal((await refusal(docker.getVolume("node-vol").inspect()))[0], 404);
  },

  errors: async () => {
    assert.deepEqual(await refusal(docker.getContainer("nosuch").inspect()), [404, "No such container: nosuch"]);
    const first = await create("node-twice", "true");
    const [status, message] = await refusal(create("node-twice", "true"));
    assert.equal(status, 409);
    assert.match(message, /is already in use by container/);
    assert.equal((await refusal(first.pause()))[0], 409);
    await first.remove();
    const bad = await create("node-bad", "", { Entrypoint: ["nosuch-program"] });
    assert.match((await refusal(bad.start()))[1], /executable file not found in \$PATH/);
    await bad.remove();
  },
});
// A stream that was left early would keep the process.
process.exit(0);
