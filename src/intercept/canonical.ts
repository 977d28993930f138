/** Values as text that can be compared. Pure. */

/** Equal for equal values, whatever the order of their keys and the class of their bytes. */
export function canonical(value: unknown): string {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (Array.isArray(value)) return `[${value.map(canonical)}]`;
  if (typeof value === 'object' && value !== null)
    return `{${Object.entries(value)
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .map(([key, member]) => `${key}:${canonical(member)}`)}}`;
  return String(value);
}
