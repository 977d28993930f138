/**
 * Has a proxy listen on `port` until a signal tells the program to end. Then no connection is taken any more, `end` is called
 * for those that are open, and the rules go when the last of them has gone.
 *
 * @param {import('linux-tproxy').TransparentServer} proxy
 * @param {string} port
 * @param {() => void} end
 */
export function serve(proxy, port, end) {
  proxy.on('error', (error) => {
    console.error(String(error));
    process.exitCode = 1;
  });
  proxy.listen(Number(port), () => console.log(`ready on port ${port}`));
  for (const signal of ['SIGTERM', 'SIGINT'])
    process.once(signal, () => {
      proxy.close();
      end();
    });
}
