// Weights over objectives that always sum to 1. Pure functions.

/** Equal weights. */
export function equal(names) {
  return Object.fromEntries(names.map((name) => [name, 1 / names.length]));
}

/** Any weights >= 0 as weights over `names` that sum to 1; equal ones where there is nothing to go by. */
export function normalised(names, given) {
  const weights = names.map((name) => {
    const weight = Number(given?.[name] ?? 0);
    return Number.isFinite(weight) && weight > 0 ? weight : 0;
  });
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  if (!(total > 0)) return equal(names);
  return Object.fromEntries(names.map((name, index) => [name, weights[index] / total]));
}

/**
 * `weights` with `name` at `value`, the others sharing the rest as they shared it in `shape`. Whoever calls keeps the
 * last weights that had a share for the others: one that was moved to 1 and back then leaves them as they were.
 */
export function moved(weights, name, value, shape) {
  const others = Object.keys(weights).filter((other) => other !== name);
  if (!others.length) return { [name]: 1 };
  const total = others.reduce((sum, other) => sum + shape[other], 0);
  const share = (other) => (total > 0 ? shape[other] / total : 1 / others.length);
  return Object.fromEntries(
    Object.keys(weights).map((other) => [other, other === name ? value : (1 - value) * share(other)]),
  );
}

/** Whole percents that sum to 100, each within one of its weight; `name`, if given, is rounded to the nearest. */
export function percents(weights, name) {
  const exact = Object.entries(weights).map(([key, weight]) => [key, 100 * weight]);
  const result = Object.fromEntries(exact.map(([key, value]) => [key, Math.floor(value + 1e-9)]));
  if (name in result) result[name] = Math.round(100 * weights[name]);
  let rest = 100 - Object.values(result).reduce((sum, value) => sum + value, 0);
  const byRemainder = exact
    .filter(([key]) => key !== name)
    .sort((one, two) => two[1] - Math.floor(two[1] + 1e-9) - (one[1] - Math.floor(one[1] + 1e-9)));
  for (let index = 0; rest > 0 && byRemainder.length; index = (index + 1) % byRemainder.length, rest -= 1) {
    result[byRemainder[index][0]] += 1;
  }
  for (let index = byRemainder.length - 1; rest < 0 && index >= 0; index -= 1) {
    if (result[byRemainder[index][0]] > 0) {
      result[byRemainder[index][0]] -= 1;
      rest += 1;
    }
  }
  return result;
}

/** The weights as a request carries them: two digits, sum 1. */
export function asSent(weights) {
  return Object.fromEntries(Object.entries(percents(weights)).map(([name, value]) => [name, value / 100]));
}
