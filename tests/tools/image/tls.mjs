// Serves TLS on 127.0.0.1 before a plain server, prints its port, and ends when standard input ends.
//
//   node tls.mjs CERTIFICATE KEY PORT

import { readFileSync } from "node:fs";
import net from "node:net";
import tls from "node:tls";

const [certificate, key, upstream] = process.argv.slice(2);
const server = tls.createServer({ cert: readFileSync(certificate), key: readFileSync(key) }, (client) => {
    const plain = net.connect(Number(upstream), "127.0.0.1");
    // Either end closes the other, whatever it ends with.
    for (const [one, other] of [[client, plain], [plain, client]]) {
        one.on("error", () => other.destroy());
        one.on("close", () => other.destroy());
        one.pipe(other);
    }
});
server.on("tlsClientError", () => {}); // A client that does not trust the certificate is what some tests want.
server.listen(0, "127.0.0.1", () => console.log(server.address().port));

process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
