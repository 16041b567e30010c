// The answers that are asked for: one running a side, stopped, begun anew, and steered on the way.

import { call, generate } from "./api.js";
import { fragmentOf } from "./link.js";
import { LiveSteering } from "./live.js";
import { title } from "./methods.js";
import { generateBody } from "./request.js";
import { steeringOf } from "./steering.js";

/**
 * `page`: state, sides, answers, past; and what it hears of: began() and changed(), notice(text), needsKey(reason).
 */
export class Runs {
  constructor(page) {
    this.page = page;
    this.running = {}; // letter -> AbortController
    this.live = {}; // letter -> LiveSteering
    this.asked = {}; // letter -> the body that the answer that is shown goes by
  }

  /** Whether anything is being written. */
  get any() {
    return Object.keys(this.running).length > 0;
  }

  toggle(letter) {
    if (this.running[letter]) this.running[letter].abort();
    else this.run(letter);
  }

  stop() {
    for (const controller of Object.values(this.running)) controller.abort();
  }

  async run(letter) {
    const { state, sides, answers, past } = this.page;
    this.running[letter]?.abort();
    this.live[letter]?.drop();
    const answer = answers[letter];
    const controller = (this.running[letter] = new AbortController());
    const traced = state.trace;
    const how = sides[letter].brief;
    const fragment = fragmentOf(state);
    const prompt = letter === "b" && !state.form.locked ? state.form.promptB : state.form.prompt;
    this.page.began();
    answer.clear();
    let live;
    try {
      const body = (this.asked[letter] = generateBody(state, letter, true));
      answer.start(title(body.steering.method), body.steering);
      this.page.changed();
      const ended = ({ steering }) => {
        if (steering.experts) sides[letter].coefficients.wrote(steering.experts);
        past.add(letter, [how, ...answer.parts.map(({ at, name }) => `from token ${at} on ${name}`)], prompt, answer.text, fragment);
      };
      if (!body.stream) {
        const reply = await call("v1/generate", body, controller.signal);
        if (this.running[letter] !== controller) return;
        answer.whole(reply);
        ended(reply);
      } else {
        live = this.live[letter] = this.steering(letter, body);
        for await (const event of generate(body, controller.signal, (id) => live.began(id))) {
          if (this.running[letter] !== controller) return;
          if (event.token) answer.push(event.token);
          else {
            answer.finish(event);
            ended(event);
          }
        }
      }
    } catch (error) {
      if (this.running[letter] !== controller) return;
      if (error.param === "steering.trace" && traced) {
        state.trace = false;
        this.page.notice("This server gives no traces: tokens come without shifts.");
        return this.run(letter);
      }
      if (error.name === "AbortError") answer.stopped();
      else answer.fail(failure(error));
      if (error.status === 401) this.page.needsKey(error.message);
    }
    live?.ended();
    delete this.live[letter];
    delete this.running[letter];
    this.age(letter);
    this.page.changed();
  }

  /** The live steering of an answer that is asked for with `body`, which follows what is accepted. */
  steering(letter, body) {
    const answer = this.page.answers[letter];
    return new LiveSteering(body.steering, {
      accepted: (steering, tokens) => {
        body.steering = steering;
        answer.say(`Steered anew from token ${tokens} on.`);
        this.age(letter);
      },
      refused: (message) => {
        answer.say(`Not steered anew: ${message}`, true);
        this.age(letter, true);
      },
    });
  }

  /** Say whether the answer goes by the settings as they are. While it follows them, what is under way is not said. */
  age(letter, refused = false) {
    const { state, answers } = this.page;
    const steerable = Boolean(this.live[letter]) && !this.live[letter].closed;
    const follows = state.form.live && steerable && !refused;
    const differs = letter in this.asked && this.signature(letter) !== JSON.stringify(this.asked[letter]);
    answers[letter].setStale(differs && !follows, steerable);
  }

  /** A control of a side has moved. */
  edited(letter) {
    if (this.page.state.form.live) this.steer(letter);
  }

  /** Steer the rest of a running answer by its side's settings. */
  steer(letter) {
    const { state } = this.page;
    const side = state.sides[letter];
    try {
      const wanted = steeringOf(state.family, side, state.trace);
      this.live[letter]?.want(wanted, state.family.methods[side.method].strength);
    } catch {
      // An option that is being typed.
    }
  }

  signature(letter) {
    try {
      return JSON.stringify(generateBody(this.page.state, letter, true));
    } catch {
      return ""; // an option that is being typed
    }
  }
}

function failure(error) {
  // What fetch says of a connection that nobody answers, or that broke, is not for people.
  if (error instanceof TypeError) return "The server cannot be reached: it has stopped, or the network is down.";
  return error.retryAfter ? `${error.message} (try again in ${error.retryAfter} s)` : error.message;
}
