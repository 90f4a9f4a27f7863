// Runs @supabase/stripe-sync-engine over signed events, for benchmarks/webhooks.py.
//
//   node process.cjs migrate    makes its tables in DATABASE_URL
//   node process.cjs run        takes rounds of events on stdin, each a line [[body, signature], …] of JSON, one
//                               event after the other, and answers the seconds that each took, a line a round
//
// CommonJS, because the package's ES module cannot find its own migrations (version 0.48.5).
const { createInterface } = require("node:readline");
const { StripeSync, runMigrations } = require("@supabase/stripe-sync-engine");

const connectionString = process.env.DATABASE_URL;

function fail(error) {
  console.error(error);
  process.exit(1);
}

async function run() {
  const sync = new StripeSync({
    poolConfig: { connectionString, max: 10 },
    stripeSecretKey: "sk_test_unused",
    stripeWebhookSecret: process.env.STRIPE_WEBHOOK_SECRET,
    autoExpandLists: false,
    backfillRelatedEntities: false,
  });
  for await (const line of createInterface({ input: process.stdin })) {
    const seconds = [];
    for (const [body, signature] of JSON.parse(line)) {
      const began = performance.now();
      await sync.processWebhook(body, signature);
      seconds.push((performance.now() - began) / 1000);
    }
    console.log(JSON.stringify(seconds));
  }
}

if (process.argv[2] === "migrate") {
  const logger = { info() {}, error: fail };
  runMigrations({ databaseUrl: connectionString, schema: "stripe", logger }).catch(fail);
} else {
  run().then(() => process.exit(0), fail);
}
