// Uses the recipe for Drizzle, which is beside it as recipe.mjs; prints the id of each row that must be sent.
import assert from "node:assert/strict";
import { eq } from "drizzle-orm";
import { drizzle } from "drizzle-orm/node-postgres";
import pg from "pg";
import { add, outboxEvent } from "./recipe.mjs";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 1 });
const database = drizzle(pool);

await database.transaction(async (tx) => {
    const [{ id }] = await add(tx);
    const [event] = await tx.select().from(outboxEvent).where(eq(outboxEvent.id, id));
    assert.deepEqual(event.payload, { id: 7 });
    console.log(id);
});
assert.equal((await database.select().from(outboxEvent)).length, 0);

// Inserted and deleted, as with Debezium.
await database.transaction(async (tx) => {
    const [{ id }] = await add(tx);
    const { rowCount } = await tx.delete(outboxEvent).where(eq(outboxEvent.id, id));
    assert.equal(rowCount, 1);
    console.log(id);
});

// A savepoint that is kept, and one that is not.
await database.transaction(async (tx) => {
    const [{ id }] = await tx.transaction(add);
    await assert.rejects(tx.transaction(async (inner) => {
        await add(inner);
        throw new Error("taken back");
    }));
    assert.deepEqual((await tx.select().from(outboxEvent)).map((event) => event.id), [id]);
    console.log(id);
});

const unrouted = { aggregatetype: "Customer", aggregateid: "1", type: "T", payload: {} };
await assert.rejects(database.insert(outboxEvent).values(unrouted), (error) =>
    `${error.message} ${error.cause?.message}`.includes("aggregatetype 'Customer' has no route"));
await pool.end();
