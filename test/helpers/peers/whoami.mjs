/** HTTP server, both families: answers with whom it sees, `remoteAddress remotePort localAddress localPort`. `whoami.mjs PORT...` */
import { createServer } from 'node:http';
import { listen, whoIs } from './listen.mjs';

const http = createServer((request, response) => {
  response.setHeader('connection', 'close').end(`${whoIs(request.socket)}\n`);
});
await listen({}, (socket) => http.emit('connection', socket));
