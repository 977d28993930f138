/** The demo's web server: a page that says whose address it sees, `/download` of SIZE bytes, and a line per request. `demo-web.mjs SIZE` */
import { createServer } from 'node:http';
import { pipeline, Readable } from 'node:stream';
import { bytes } from '../test/helpers/peers/bytes.mjs';

const size = Number(process.argv[2]);
const plain = (address = '') => address.replace('::ffff:', '');

const server = createServer((request, response) => {
  const { remoteAddress, remotePort, localAddress } = request.socket;
  console.log(`request ${request.url} ${plain(remoteAddress)} ${remotePort}`);
  if (request.url === '/download') {
    response.setHeader('content-length', size);
    pipeline(Readable.from(bytes(size)), response, () => {});
  } else {
    response.end(`Hello ${plain(remoteAddress)}, this is ${plain(localAddress)}.\n`);
  }
});
server.listen(80, '::', () => console.log('ready'));
