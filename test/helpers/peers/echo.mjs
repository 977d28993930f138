/** TCP server, both families: sends back what it gets, ends when the peer ends. `echo.mjs PORT...` */
import { listen } from './listen.mjs';

await listen({ allowHalfOpen: true }, (socket) => {
  socket.pipe(socket);
});
