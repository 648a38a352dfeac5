// Testcontainers for Node.js, as a test suite uses it: real servers, wait strategies, mapped ports, clean-up by the reaper.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import Docker from "dockerode";
import pg from "pg";
import { createClient } from "redis";
import { GenericContainer, Network, Wait } from "testcontainers";
import { PostgreSqlContainer } from "@testcontainers/postgresql";
import { RedisContainer } from "@testcontainers/redis";
import { BUSYBOX, POSTGRES, REDIS, report, text, until } from "./scenarios.mjs";

const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace("unix://", "") });

if (process.argv[2] === "--child") {
  // The client that is killed: it starts a container and says which.
  const redis = await new RedisContainer(REDIS).start();
  console.log(redis.getId());
  await new Promise((resolve) => setTimeout(resolve, 1_000_000));
}

async function ask(redis, work) {
  const client = createClient({ url: redis.getConnectionUrl() });
  await client.connect();
  try {
    return await work(client);
  } finally {
    client.destroy();
  }
}

await report({
  // First, because later this process holds the reaper that the two share.
  "a killed client is cleaned up after": async () => {
    const child = spawn(process.execPath, [process.argv[1], "--child"], { stdio: ["ignore", "pipe", "inherit"] });
    const id = await new Promise((resolve) => child.stdout.once("data", (data) => resolve(String(data).trim())));
    assert.equal((await docker.getContainer(id).inspect()).State.Running, true);
    child.kill("SIGKILL");
    const gone = () => docker.listContainers({ all: true, filters: { id: [id] } }).then((found) => found.length === 0);
    await until(gone, "the reaper removes the container", 90);
  },

  "Redis by its module": async () => {
    const redis = await new RedisContainer(REDIS).start();
    assert.equal(await ask(redis, async (client) => (await client.set("a", "1"), client.incr("a"))), 2);
    const id = redis.getId();
    await redis.stop();
    await assert.rejects(docker.getContainer(id).inspect(), /No such container|no such container/);
  },

  "PostgreSQL by its module": async () => {
    const postgres = await new PostgreSqlContainer(POSTGRES).withDatabase("shop").withUsername("me").withPassword("secret").start();
    const client = new pg.Client({ connectionString: postgres.getConnectionUri() });
    await client.connect();
    assert.deepEqual((await client.query("select sum(n)::int as s from generate_series(1, 1000) n")).rows, [{ s: 500500 }]);
    await client.end();
    await postgres.stop();
  },

  "wait strategies": async () => {
    const page = ["sh", "-c", "mkdir /w; echo hello > /w/index.html; sleep 0.3; echo serving; exec httpd -f -p 8080 -h /w"];
    const web = () => new GenericContainer(BUSYBOX).withCommand(page).withExposedPorts(8080);
    for (const wait of [Wait.forHttp("/", 8080), Wait.forLogMessage("serving"), Wait.forListeningPorts(), Wait.forSuccessfulCommand("test -e /w/index.html")]) {
      const container = await web().withWaitStrategy(wait).start();
      await until(async () => (await fetch(`http://${container.getHost()}:${container.getMappedPort(8080)}/`).then((r) => r.text()).catch(() => "")) === "hello\n", "the page");
      await container.stop();
    }
    const healthy = await web()
      .withHealthCheck({ test: ["CMD-SHELL", "test -e /w/index.html"], interval: 300, timeout: 3000, retries: 50 })
      .withWaitStrategy(Wait.forHealthCheck())
      .start();
    await healthy.stop();
    const once = await new GenericContainer(BUSYBOX).withCommand(["true"]).withWaitStrategy(Wait.forOneShotStartup()).start();
    await once.stop();
  },

  "exec, copy, mounts": async () => {
    writeFileSync(`${process.env.COMPAT_TMP}/host-file`, "from the host");
    const box = await new GenericContainer(BUSYBOX)
      .withCommand(["sleep", "1000"])
      .withEnvironment({ A: "b" })
      .withCopyContentToContainer([{ content: "content", target: "/sent/content" }])
      .withCopyFilesToContainer([{ source: `${process.env.COMPAT_TMP}/host-file`, target: "/sent/file" }])
      .withTmpFs({ "/t": "rw,size=1m" })
      .withUser("nobody")
      .start();
    const done = await box.exec(["sh", "-c", "cat /sent/content /sent/file; echo $A >&2; exit 3"]);
    assert.deepEqual([done.exitCode, done.stdout, done.stderr], [3, "contentfrom the host", "b\n"]);
    assert.ok((await text(await box.copyArchiveFromContainer("/sent/content"))).includes("content"));
    await box.restart();
    await box.stop();
  },

  "containers on one network": async () => {
    const network = await new Network().start();
    const store = await new RedisContainer(REDIS).withNetwork(network).withNetworkAliases("store").start();
    const asker = await new GenericContainer(REDIS).withCommand(["sleep", "1000"]).withNetwork(network).start();
    assert.equal((await asker.exec(["redis-cli", "-h", "store", "ping"])).output, "PONG\n");
    await asker.stop();
    await store.stop();
    await network.stop();
  },

  "tests in parallel": async () => {
    const all = await Promise.all([0, 1, 2, 3].map(() => new RedisContainer(REDIS).start()));
    assert.equal(new Set(all.map((redis) => redis.getPort())).size, 4);
    for (const [number, redis] of all.entries()) await ask(redis, (client) => client.set("n", String(number)));
    assert.deepEqual(await Promise.all(all.map((redis) => ask(redis, (client) => client.get("n")))), ["0", "1", "2", "3"]);
    await Promise.all(all.map((redis) => redis.stop()));
  },
});
// The reaper's connection would keep the process; its end is what tells the reaper to begin.
process.exit(0);
