// The tests talk with a client in lines of JSON. On standard input come
// commands {"id":N,"do":NAME,...}; on standard output go their results,
// {"id":N,"ok":...} or {"id":N,"error":{...}}, and what comes by itself,
// {"event":NAME,...}. The end of the input closes the client, which the event
// "closed" tells.
'use strict';

const readline = require('node:readline');

function say(line) {
  process.stdout.write(JSON.stringify(line, (_, v) => (v === undefined ? null : v)) + '\n');
}

// serve runs commands one by one, each by the function of its name in verbs.
// close is awaited at the end.
async function serve(verbs, close) {
  const input = readline.createInterface({ input: process.stdin });
  for await (const line of input) {
    const command = JSON.parse(line);
    try {
      say({ id: command.id, ok: (await verbs[command.do](command)) ?? null });
    } catch (err) {
      say({ id: command.id, error: { message: String(err.message ?? err), modeled: err.modeledError ?? null, code: err.code ?? null } });
    }
  }
  await close();
  say({ event: 'closed' });
}

module.exports = { say, serve };
