/** The verbs, in the order in which they are told. */
import { completionOf } from './completion.js';
import { doctor } from './doctor.js';
import { down } from './down.js';
import { plan } from './plan.js';
import { relay } from './relay.js';
import { run } from './run.js';
import { status } from './status.js';
import { up } from './up.js';
import type { Verb } from './verb.js';

export const verbs: Verb[] = [up, down, status, plan, run, relay, doctor];
verbs.push(completionOf(verbs));
