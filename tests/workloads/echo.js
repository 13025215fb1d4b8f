// A server for `load talk`: it numbers the lines of each connection. A thread of
// its own makes and drops objects, so that the heap is never at rest.
"use strict";

const net = require("node:net");
const readline = require("node:readline");
const { Worker, isMainThread } = require("node:worker_threads");

if (isMainThread) {
	new Worker(__filename);
	net
		.createServer((socket) => {
			let number = 0;
			readline.createInterface({ input: socket }).on("line", (line) => socket.write(`${++number} ${line}\n`));
			socket.on("error", () => {});
		})
		.listen(Number(process.argv[2]), "0.0.0.0");
} else {
	setInterval(() => {
		const all = Array.from({ length: 1000 }, (_, n) => ({ n, text: `${n}`.repeat(10) }));
		if (all[999].text !== "999".repeat(10)) throw new Error("the heap is damaged");
	}, 2);
}
