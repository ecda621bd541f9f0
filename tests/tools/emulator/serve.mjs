// Serves the SQS emulator on 127.0.0.1 and prints its address; ends when standard input ends.
//
//   node serve.mjs PATH_OF_CLI_JS [PORT]
//
// The emulator's own command listens on all interfaces and outlives the process that started it. Standard input
// prevents that here: when the owner dies for whatever reason, the pipe ends, and so does this process.

import { pathToFileURL } from "node:url";
import path from "node:path";

const [cli, port = "0"] = process.argv.slice(2);
const load = (file) => import(pathToFileURL(path.join(path.dirname(cli), file)).href);
const { buildApp } = await load("app.js");
const { SqsStore } = await load("sqs/sqsStore.js");
const { INVALID_MESSAGE_BODY_CHAR } = await load("sqs/sqsTypes.js");
const { SnsStore } = await load("sns/snsStore.js");
const { SnsRouter } = await load("sns/snsRouter.js");
const { SnsError } = await load("common/errors.js");
const { S3Store } = await load("s3/s3Store.js");

// SQS accepts nearly every character up to U+10FFFF; the emulator refuses all beyond U+FFFF.
const refused = /[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}\u{10000}-\u{10FFFF}]/u;
INVALID_MESSAGE_BODY_CHAR.test = (body) => refused.test(body);

// SQS remembers every deduplication id for five minutes; the emulator only the last 10,000 of a queue.
class DeduplicationMemory {
    #seen = new Map();

    get(id) {
        const entry = this.#seen.get(id);
        return entry && entry.until > Date.now() ? entry.value : undefined;
    }

    set(id, value) {
        const now = Date.now();
        // Insertion order is the order of expiry, so expired entries are all at the front.
        for (const [old, entry] of this.#seen) {
            if (entry.until > now) break;
            this.#seen.delete(old);
        }
        this.#seen.delete(id);
        this.#seen.set(id, { value, until: now + 300_000 });
    }
}
const createQueue = SqsStore.prototype.createQueue;
SqsStore.prototype.createQueue = function (...specification) {
    const queue = createQueue.apply(this, specification);
    queue.deduplicationCache = new DeduplicationMemory();
    return queue;
};

// SNS refuses a batch with more than ten entries, with two of one id, or with more than 256 KiB; the emulator takes each.
const refuseBatch = (parameters) => {
    const values = (field) =>
        Object.entries(parameters)
            .filter(([key]) => key.startsWith("PublishBatchRequestEntries.member.") && field.test(key))
            .map(([, value]) => value);
    const ids = values(/^\w+\.member\.\d+\.Id$/);
    const bytes = values(/\.(Message|Name|DataType|StringValue)$/).reduce((sum, text) => sum + Buffer.byteLength(text), 0);
    if (ids.length === 0) throw new SnsError("EmptyBatchRequest", "The batch request is empty.");
    if (ids.length > 10) throw new SnsError("TooManyEntriesInBatchRequest", `${ids.length} entries.`);
    if (new Set(ids).size < ids.length) throw new SnsError("BatchEntryIdsNotDistinct", "Two entries have one id.");
    if (bytes > 262_144) throw new SnsError("BatchRequestTooLong", `The length of all the messages is ${bytes} bytes.`);
};
const register = SnsRouter.prototype.register;
SnsRouter.prototype.register = function (action, handler) {
    const checked = (parameters, ...others) => {
        refuseBatch(parameters);
        return handler(parameters, ...others);
    };
    register.call(this, action, action === "PublishBatch" ? checked : handler);
};

const sqsStore = new SqsStore();
// Without a configured host, a queue's URL contains the address that its creator used.
sqsStore.host = "";
const stores = { sqsStore, snsStore: new SnsStore(), s3Store: new S3Store() };
const app = buildApp({ logger: false, stores });
// The default of five seconds would close connections that a client's pool considers open.
app.server.keepAliveTimeout = 60_000;
console.log(await app.listen({ port: Number(port), host: "127.0.0.1" }));

process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
