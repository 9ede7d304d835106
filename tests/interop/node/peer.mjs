// A Graphile Worker that a test commands: requests come as lines of JSON on stdin, answers and events go out as lines on stdout.
//
//   node peer.mjs PACKAGE DATABASE_URL SCHEMA
//
// Request {"id": 1, "do": "addJob", "args": [...]} gives {"id": 1, "result": ...} or {"id": 1, "error": "...", "code": "..."}.
// The process ends with its stdin, so that it never outlives the test.
import { createInterface } from "node:readline";

const [packageName, connectionString, schema] = process.argv.slice(2);
const worker = await import(packageName);

const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const logger = new worker.Logger(() => (level, message) => {
  if (level !== "debug" && level !== "info") say({ event: "log", level, message });
});

const held = new Map(); // by the job's number: lets its run go on
let utils, runner;

const getUtils = async () => (utils ??= await worker.makeWorkerUtils({ connectionString, schema, logger }));

// What every test task does, here and in ../tasks.py: note the run, perhaps wait for the test, perhaps fail.
async function note(payload, helpers) {
  const { job } = helpers;
  const order = Array.isArray(payload) ? {} : (payload ?? {});
  const { rows } = await helpers.query(
    `insert into public.runs (side, pid, task, job_id, number, attempt, queue, payload)
     values ('node', $1, $2, $3, $4, $5, $6, $7) returning id`,
    [process.pid, job.task_identifier, job.id, order.number ?? null, job.attempts,
     await helpers.getQueueName(job.job_queue_id), JSON.stringify(payload)],
  );
  if (order.hold) {
    const go = new Promise((resolve) => held.set(order.number, resolve));
    say({ event: "held", number: order.number });
    await go;
  }
  await helpers.query("update public.runs set ended = clock_timestamp() where id = $1", [rows[0].id]);
  if (job.attempts <= (order.fails ?? 0)) throw new Error(order.error ?? `attempt ${job.attempts} fails`);
}

// A batch job: fails for the items that say so, and for no others.
async function batch(payload, helpers) {
  await note(payload, helpers);
  return payload.map((item) => (item.fails ? Promise.reject(new Error(`item ${item.n} fails`)) : Promise.resolve()));
}

async function forward(event, details) {
  const { job, timestamp, error } = details ?? {};
  say({ event, job: job?.id, number: job?.payload?.number, timestamp, error: error?.message });
}

// JSON has no dates.
const dated = (spec) => (spec?.runAt ? { ...spec, runAt: new Date(spec.runAt) } : spec);

const requests = {
  async addJob(name, payload, spec) { return (await getUtils()).addJob(name, payload, dated(spec)); },
  async addJobs(specs, ...args) { return (await getUtils()).addJobs(specs.map(dated), ...args); },
  async migrate() { await (await getUtils()).migrate(); },
  async completeJobs(...args) { return (await getUtils()).completeJobs(...args); },
  async permanentlyFailJobs(...args) { return (await getUtils()).permanentlyFailJobs(...args); },
  async rescheduleJobs(ids, options) { return (await getUtils()).rescheduleJobs(ids, dated(options)); },
  async forceUnlockWorkers(...args) { await (await getUtils()).forceUnlockWorkers(...args); },
  async cleanup(options) { await (await getUtils()).cleanup(options); },

  // Start a worker that runs until `stop`. `tasks`: names of tasks that note their runs; `events`: those to pass on.
  async run({ tasks = [], batches = [], events = [], crontab, ...options }) {
    const taskList = {
      ...Object.fromEntries(tasks.map((name) => [name, note])),
      ...Object.fromEntries(batches.map((name) => [name, batch])),
    };
    runner = await worker.run({
      connectionString, schema, logger, taskList, noHandleSignals: true,
      crontab: crontab ?? "", ...options,
    });
    for (const name of events) runner.events.on(name, (details) => forward(name, details));
    runner.promise.then(
      () => say({ event: "ended", exitCode: process.exitCode ?? 0 }),
      (error) => say({ event: "ended", exitCode: process.exitCode ?? 0, error: error.message }),
    );
  },
  async runOnce({ tasks = [], batches = [], ...options }) {
    const taskList = {
      ...Object.fromEntries(tasks.map((name) => [name, note])),
      ...Object.fromEntries(batches.map((name) => [name, batch])),
    };
    await worker.runOnce({ connectionString, schema, logger, taskList, noHandleSignals: true, ...options });
  },
  // What Node makes of crontabs: their items, each with whether it matches at these moments, or null for one that it refuses.
  async parseCrontabs(texts, moments) {
    return texts.map((text) => {
      try {
        return worker.parseCrontab(text).map(({ match, ...item }) => ({ ...item, matches: moments.map((one) => match(one)) }));
      } catch {
        return null;
      }
    });
  },
  async release(number) {
    held.get(number)();
    held.delete(number);
  },
  async stop() { await runner.stop(); },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, args } = JSON.parse(line);
  requests[name](...args).then(
    (result) => say({ id, result: result ?? null }),
    (error) => say({ id, error: error.message, code: error.code ?? null }),
  );
}
process.exit();
