/** churn.ts in a process of its own, until a line comes in. Prints `ready`, and in the end `batches <count>`. */
import { once } from 'node:events';
import { churn } from './churn.js';

const churning = churn({ name: 'theirs', priority: 5001, size: 4000 });
console.log('ready');
await once(process.stdin, 'data');
console.log(`batches ${await churning.stop()}`);
process.exit();
