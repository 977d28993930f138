/**
 * What is worked out of a thing that does not change, once. It is kept in the thing itself, where nobody sees it and copies are
 * without it: what a WeakMap holds of young things outlives them until old garbage is collected. Pure.
 */
export function once<T extends object, R>(work: (thing: T) => R): (thing: T) => R {
  const key = Symbol(work.name);
  return (thing: T & { readonly [key]?: R }) => {
    const known = thing[key];
    if (known !== undefined) return known;
    const value = work(thing);
    Reflect.defineProperty(thing, key, { value }); // A frozen thing cannot keep it.
    return value;
  };
}
