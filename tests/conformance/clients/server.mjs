// Where the server is, and what every client of node is asked for. Packages come from the folder in LADLE_MODULES.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const { LADLE_URL, LADLE_KEY, LADLE_MODULES } = process.env;
const require = createRequire(`${LADLE_MODULES}/package.json`);

export const url = LADLE_URL;
export const v1 = `${LADLE_URL}/v1`;
export const key = LADLE_KEY;
export const named = "demo/bone_soup@positive=1";
export const steering = { steering: { preference: { concise: 1 } } };
export const load = (name) => import(pathToFileURL(require.resolve(name)));

export const { z } = await load("zod");
export const forecast = z.strictObject({ town: z.enum(["Ur", "Bath"]), days: z.int().min(1).max(9) });
