/** `nft` without the command: nf_tables over one netlink socket. */
import { type NativeNftablesSocket, native, type Prepared } from '../native.js';
import {
  checkCommitOptions,
  checkCounterFilter,
  checkKey,
  checkKind,
  checkListFilter,
  checkNftWatch,
  checkOperations,
} from './check/nftables.js';
import { checkSocketOptions } from './check/schema.js';
import type { NetlinkSocketOptions } from './route.js';
import type { NftChange, NftCounter, NftFamily, NftGeneration, NftKey, NftObject, NftOperation } from './types.js';
import { Watches } from './watches.js';

export interface CommitOptions {
  /** Only if the rule set is still of this generation; `ERESTART` if not. */
  readonly generation?: number;
  /**
   * Check only. Equivalent to: `nft --check`. Nothing is changed and all errors are reported, but for those that the
   * kernel finds when it commits, such as an expression in a hook where it may not be.
   */
  readonly dryRun?: boolean;
}

/** Only what is of this family, table, chain, set; only the counter of this name. */
export interface ListFilter {
  readonly family?: NftFamily;
  readonly table?: string;
  readonly chain?: string;
  readonly set?: string;
  readonly counter?: string;
}

const prepared = Symbol('prepared');
/**
 * Gives what it is given: operations that are committed later, but are worked out from now on, beside what JavaScript does. They must
 * not change in between.
 */
export function prepare(operations: readonly NftOperation[]): readonly NftOperation[] {
  checkOperations(operations);
  Reflect.defineProperty(operations, prepared, { value: native.prepare(operations) });
  return operations;
}

/**
 * A socket to nf_tables. Each call is one transaction with the kernel, on one of up to four threads of this package's own
 * (or as many as UV_THREADPOOL_SIZE says); calls on one socket run in the order in which they were made. They throw
 * `TypeError` or `RangeError` for arguments that cannot be, and `NetlinkError` where the kernel refuses. All
 * of it needs CAP_NET_ADMIN, listing too.
 *
 * Tables made with the flag `owner` belong to the socket: others cannot change them, and they go when it is closed, in
 * whatever way the process ends. It is closed too when nothing refers to this object any more.
 */
export class NftablesSocket {
  readonly #native: NativeNftablesSocket;
  readonly #watches = new Watches();

  /** Throws `SocketError` where the namespace cannot be entered. */
  constructor(options: NetlinkSocketOptions = {}) {
    checkSocketOptions(options);
    this.#native = new native.NftablesSocket(options.netns);
  }

  /** What the kernel shows as `owner` of the tables that belong to this socket. */
  get portId(): number {
    return this.#native.portId;
  }

  /**
   * Equivalent to: `nft -f`, one batch, all or nothing. Where operations fail, `NetlinkError.errors` has each of them
   * with its index.
   *
   * The batch goes to the kernel in one piece. More than about 400 kB (some 7,000 prefixes) need CAP_NET_ADMIN in the
   * first user namespace, or a larger `net.core.wmem_max`: `EMSGSIZE` otherwise.
   */
  async commit(operations: readonly NftOperation[], options?: CommitOptions): Promise<void> {
    checkOperations(operations);
    if (options !== undefined) checkCommitOptions(options);
    await this.#native.commit((operations as { readonly [prepared]?: Prepared })[prepared] ?? operations, options);
  }

  /** The same at once, for `process.on('exit')`. */
  commitSync(operations: readonly NftOperation[], options?: CommitOptions): void {
    checkOperations(operations);
    if (options !== undefined) checkCommitOptions(options);
    this.#native.commitSync(operations, options);
  }

  /** The number of the rule set's present state, and who made it. */
  generation(): Promise<NftGeneration> {
    return this.#native.generation();
  }

  /**
   * Equivalent to: `nft list tables`, `nft list chains`, ... For `elements` family, table and set are needed; the
   * answer is one object, its elements in ascending order. `ENOENT` where there is no such set.
   */
  async list<K extends NftObject['kind']>(kind: K, filter?: ListFilter): Promise<Extract<NftObject, { kind: K }>[]> {
    checkKind(kind);
    if (filter !== undefined || kind === 'elements') checkListFilter(kind, filter ?? {});
    return this.#native.list(kind, filter);
  }

  /**
   * Equivalent to: `nft list table inet x`, `nft list counter inet x web`, ..., but for what is inside. One object by its name, a
   * rule by its handle. `ENOENT` where there is none.
   *
   * Equivalent to: `nft get element inet x s { 80, 443 }`. Elements by their keys; `ENOENT` where one of them is not there. In
   * an interval set any key finds the interval that it is in: the key by which it begins or, asked for with the flag
   * `intervalEnd`, the first key behind it (nothing, where the interval goes to the last key there is).
   */
  async get<K extends NftKey['kind']>(key: NftKey & { readonly kind: K }): Promise<Extract<NftObject, { kind: K }>> {
    checkKey(key);
    return (await this.#native.get(key)) as Extract<NftObject, { kind: K }>;
  }

  /**
   * Equivalent to: `nft reset counters`, `nft reset counter inet x web`. Gives the counters as they were, and sets them to
   * zero, so that no packet between the two goes uncounted. A name needs its family and table.
   */
  async resetCounters(filter: Pick<ListFilter, 'family' | 'table' | 'counter'> = {}): Promise<NftCounter[]> {
    checkCounterFilter(filter);
    return this.#native.resetCounters(filter);
  }

  /**
   * Equivalent to: `nft monitor`. Tells of batches that anybody commits, this socket too, from now until the socket is
   * closed or the function that this gives is called. Does not keep the process alive.
   */
  watch(onChanges: (changes: NftChange[]) => void, filter: { readonly table?: string } = {}): () => void {
    checkNftWatch(filter, onChanges);
    const watch = this.#native.watch(filter, onChanges);
    return this.#watches.add(() => native.unwatch(watch));
  }

  /**
   * Makes the kernel delete the tables that the socket owns, and ends the watches; done when the promise is kept, which may
   * take some milliseconds. A call under way is finished first; those that wait for it, and later ones, fail with `EBADF`.
   */
  close(): Promise<void> {
    this.#watches.endAll();
    return this.#native.close();
  }
}
