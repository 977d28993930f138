/** A proxy that knows nothing of rules: listens on PORT with IP_TRANSPARENT, greets with its process id, then echoes. */
import { createTransparentServer } from '../../src/index.js';
import { greeting } from './talk.js';

const server = createTransparentServer({}, (socket) => greeting(String(process.pid), socket));
server.listen(Number(process.argv[2]), () => console.log(`here ${process.pid}`));
