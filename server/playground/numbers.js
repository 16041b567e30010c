// An answer in numbers.

/** Words of a text. */
export function wordsOf(text) {
  return text.split(/\s+/).filter(Boolean).length;
}

/** What `tokens` say in numbers, null where it is not known; the times are of performance.now(). */
export function numbersOf(tokens, { startedAt, firstAt, lastAt }) {
  const shifts = tokens.map((token) => token.shift).filter((shift) => shift !== null && shift !== undefined);
  const changed = tokens.filter((token) => token.argmax_changed).length;
  const guided = tokens.filter((token) => token.outside !== null && token.outside !== undefined);
  const seconds = lastAt === null ? 0 : (lastAt - firstAt) / 1000;
  const share = (part, whole) => (whole ? part / whole : null);
  return {
    words: tokens.length ? wordsOf(tokens.map((token) => token.text).join("")) : null,
    tokens: tokens.length,
    shift: share(shifts.reduce((sum, shift) => sum + shift, 0), shifts.length),
    changed: shifts.length ? share(changed, tokens.length) : null,
    outside: share(guided.filter((token) => token.outside).length, guided.length),
    first: firstAt === null ? null : (firstAt - startedAt) / 1000,
    rate: seconds > 0 ? (tokens.length - 1) / seconds : null,
  };
}
