/** The pure parts of the examples: FTP's words, and a proxy's headers. TLS has a file of its own (client-hello). */
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  formatEprt,
  formatPort,
  parseCommand,
  parseEprt,
  parsePassive,
  parsePort,
} from '../../examples/ftp-proxy/protocol.mjs';
import { changed, endToEnd, problemWith } from '../../examples/http-proxy/headers.mjs';

const ftp = suite('FTP');

ftp('a command is what every server takes for the same one', () => {
  const command = (line: string) => {
    const { verb, argument, text } = parseCommand(line) ?? {};
    return [verb, argument, text];
  };
  assert.equal(command('port 1,2,3,4,5,6\r\n'), ['PORT', '1,2,3,4,5,6', 'port 1,2,3,4,5,6\r\n']);
  assert.equal(command('PWD\n'), ['PWD', '', 'PWD\n']);
  assert.equal(command('STOR  two blanks \r\n'), ['STOR', ' two blanks ', 'STOR  two blanks \r\n']);
  assert.equal(command('\xff\xf4\xff\xf2ABOR\r\n'), ['ABOR', '', 'ABOR\r\n']);
  assert.equal(command('\xff\xfd\x06NO\xff\xf1OP\r\n'), ['NOOP', '', 'NOOP\r\n']);
  assert.equal(command('CWD \xff\xff\xf4\r\n'), ['CWD', '\xff\xff\xf4', 'CWD \xff\xff\xf4\r\n'], 'an escaped byte');
  for (const line of ['\r\n', ' PWD\r\n', 'PWD\tx\r\n', 'CWD a\rb\r\n', 'CWD a\0\r\n', 'PW\r\n', 'PWD'])
    assert.is(parseCommand(line), undefined, JSON.stringify(line));
});

ftp('PORT and EPRT, there and back', () => {
  assert.equal(parsePort('10,77,1,2,200,10'), { address: '10.77.1.2', port: 51210 });
  assert.is(formatPort('10.77.1.2', 51210), '10,77,1,2,200,10');
  for (const wrong of [
    '',
    '1,2,3,4,5',
    '1,2,3,4,5,6,7',
    '256,2,3,4,5,6',
    '1,2,3,4,5,256',
    'a,2,3,4,5,6',
    '-1,2,3,4,5,6',
  ])
    assert.is(parsePort(wrong), undefined, wrong);
  assert.equal(parseEprt('|1|10.77.1.2|51210|'), { address: '10.77.1.2', port: 51210 });
  assert.equal(parseEprt('~2~FD77:1:0::2~51210~'), { address: 'fd77:1::2', port: 51210 });
  assert.is(formatEprt('10.77.1.2', 1), '|1|10.77.1.2|1|');
  assert.is(formatEprt('fd77:1::2', 1), '|2|fd77:1::2|1|');
  for (const wrong of [
    '',
    '|1|10.77.1.2|51210',
    '|2|10.77.1.2|1|',
    '|1|fd77::1|1|',
    '|3|10.77.1.2|1|',
    '|1|10.77.1.2|65536|',
    '|1|host|1|',
    '|1~10.77.1.2|1|',
  ])
    assert.is(parseEprt(wrong), undefined, wrong);
});

ftp('where a server waits, and its reply with another place', () => {
  const passive = (reply: string) => {
    const { address, port, moved } = parsePassive(reply) ?? {};
    return [address, port, moved?.('10.9.8.7', 258)];
  };
  assert.equal(passive('227 Entering (10,77,2,2,200,10).\r\n'), [
    '10.77.2.2',
    51210,
    '227 Entering (10,9,8,7,1,2).\r\n',
  ]);
  assert.equal(passive('227 10,77,2,2,200,10\r\n'), ['10.77.2.2', 51210, '227 10,9,8,7,1,2\r\n']);
  assert.equal(passive('229 Here (|||229|)\r\n'), [undefined, 229, '229 Here (|||258|)\r\n']);
  assert.equal(passive('229 Here (!!!51210!) \r\n'), [undefined, 51210, '229 Here (!!!258!) \r\n']);
  for (const wrong of [
    '227 nowhere\r\n',
    '227 (1,2,3,4,5,256)\r\n',
    '229 (|||0|)\r\n',
    '229 (|||65536|)\r\n',
    '229 (|1|a|2|)\r\n',
  ])
    assert.is(parsePassive(wrong), undefined, wrong);
});

ftp.run();

const http = suite('HTTP headers');

http('those of one hop stay behind, but never a length or a host', () => {
  const rawHeaders = [
    'Host',
    'a',
    'CONNECTION',
    'x, Content-Length ,host,close',
    'X',
    '1',
    'x',
    '2',
    'Y',
    'X',
    'TE',
    't',
    'Content-Length',
    '3',
  ];
  const headers = { connection: 'x, Content-Length ,host,close' };
  assert.equal(endToEnd({ rawHeaders, headers }), ['Host', 'a', 'Y', 'X', 'Content-Length', '3']);
});

http('changes take the place of all of that name', () => {
  const headers = ['A', '1', 'b', '2', 'a', '3', 'C', 'a'];
  assert.equal(changed(headers, ['a: 4: 5']), ['b', '2', 'C', 'a', 'a', '4: 5']);
  assert.equal(changed(headers, ['A:', 'D: 1', 'd: 2']), ['b', '2', 'C', 'a', 'd', '2']);
});

http('whose requests cannot be passed on', () => {
  const judge = (rawHeaders: string[], url = '/', address = '10.77.2.2', httpVersion = '1.1') => {
    const headers = { host: rawHeaders[1] ?? '' };
    return problemWith({ rawHeaders, headers, url, httpVersion }, { address })?.status;
  };
  for (const host of ['', 'example.org', 'example.org:8080', 'a_b', '10.77.2.2', '10.77.2.2:81'])
    assert.is(judge(['Host', host]), undefined, host);
  assert.is(judge(['Host', '[fd77:2:0::2]:80'], '/', 'fd77:2::2'), undefined);
  for (const host of ['a b', 'a/b', '[::1', 'a:b', 'a,b']) assert.is(judge(['Host', host]), 400, host);
  for (const host of ['10.77.2.3', '[fd77:2::3]']) assert.is(judge(['Host', host]), 421, host);
  assert.is(judge(['Host', 'a', 'host', 'a']), 400);
  assert.is(judge(['Host', 'a'], 'nowhere'), 400);
  assert.is(judge(['Host', 'a'], '*'), undefined);
  assert.is(judge(['Host', 'a'], 'http://a/'), undefined);
  assert.is(judge([], '/', '10.77.2.2', '0.9'), 400);
  assert.is(judge([], '/', '10.77.2.2', '1.0'), undefined);
});

http.run();
