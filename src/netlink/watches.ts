/** What watches on a socket have in common: each ends by itself, or all with the socket. */
export class Watches {
  readonly #ends = new Set<() => void>();

  /** Gives what ends it. */
  add(end: () => void): () => void {
    this.#ends.add(end);
    return () => {
      this.#ends.delete(end);
      end();
    };
  }

  endAll(): void {
    for (const end of this.#ends) end();
    this.#ends.clear();
  }
}
