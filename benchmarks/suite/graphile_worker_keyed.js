// graphile-worker as a peer that gives each job a key: the same package, through its documented functions.
"use strict";
const { runMigrations, makeWorkerUtils } = require("graphile-worker");
const { Pool } = require("pg");

exports.version = () => "";
exports.pending = "";
exports.modes = { default: {} };

exports.create = (dsn) => {
  let pool, utils;
  return {
    install: () => runMigrations({ connectionString: dsn }),
    async open() {
      pool = new Pool({ connectionString: dsn, max: 1 });
      utils = await makeWorkerUtils({ pgPool: pool });
    },
    add: (i) => utils.addJob("noop", { id: i }, { jobKey: `key-${i}` }),
    async addMany(ids) {
      for (let k = 0; k < ids.length; k += 10000) {
        await utils.addJobs(ids.slice(k, k + 10000).map((i) => ({ identifier: "noop", payload: { id: i }, jobKey: `key-${i}` })));
      }
    },
    async close() { await utils.release(); await pool.end(); },
  };
};
