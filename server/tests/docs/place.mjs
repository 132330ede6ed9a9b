// Where the blocks of a page run: a temporary directory, a shell, a server, and ports that are free.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, statSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { sameOutput } from "./compare.mjs";

/** A path, or a name that is looked up in the PATH. */
const BIN = process.env.PRESENCE_BIN?.includes("/") ? resolve(process.env.PRESENCE_BIN) : "presence";
const COMMAND_TIMEOUT = 20_000;
const START_TIMEOUT = 20_000;
const STOP_TIMEOUT = 15_000;
/** How long what runs in the background may take to end after a signal. */
const KILL_TIMEOUT = 2_000;
/** A port of a page, but not a part of a longer number, a name or a UUID. */
const PORT = /(?<![\w.-])80\d\d(?![\w-]|\.\d)/g;
/** The word with which a command starts a server, or asks the binary for something else. */
const PRESENCE = /(?<=^|[\s;&|(])presence(?=\s|$)/;

const pause = () => new Promise((resolve) => setTimeout(resolve, 20));

/** Rejects when a promise takes too long. */
export async function within(milliseconds, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing after ${milliseconds / 1000} s`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A text as one word of the shell. */
export const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A free port below those that the system gives to clients, so that none takes it before its server does. */
async function freePort(taken) {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    if (taken.includes(String(port))) continue;
    const server = net.createServer().listen(port, "127.0.0.1");
    try {
      await once(server, "listening");
    } catch (error) {
      if (error.code !== "EADDRINUSE") throw error;
      continue;
    }
    server.close();
    await once(server, "close");
    return String(port);
  }
}

/** Signals a process group; false if it has ended. */
function signal(group, name) {
  try {
    return process.kill(-group, name);
  } catch {
    return false;
  }
}

export class Place {
  #root = mkdtempSync(join(tmpdir(), "presence-docs-"));
  /** What the page's commands see as their directory. */
  directory = join(this.#root, "page");
  /** The files of the runner. */
  scratch = join(this.#root, "runner");
  #ports = new Map();
  #server = null;
  #shell = null;

  constructor() {
    mkdirSync(this.directory);
    mkdirSync(this.scratch);
  }

  /** The page's text with free ports instead of 8000 to 8099. */
  async localize(text) {
    for (const [port] of text.matchAll(PORT)) {
      if (!this.#ports.has(port)) this.#ports.set(port, await freePort([...this.#ports.values()]));
    }
    return text.replace(PORT, (port) => this.#ports.get(port));
  }

  /** An output with the ports of the page. */
  globalize(text) {
    for (const [port, free] of this.#ports) text = text.replace(new RegExp(`(?<![0-9])${free}(?![0-9])`, "g"), port);
    return text;
  }

  /** Of everything that a page runs: no variable of the binary, and nothing of the user's home. */
  get environment() {
    const own = Object.entries(process.env).filter(([name]) => !name.startsWith("PRESENCE_"));
    const path = BIN === "presence" ? process.env.PATH : `${dirname(BIN)}${delimiter}${process.env.PATH}`;
    return { ...Object.fromEntries(own), HOME: this.directory, PATH: path };
  }

  /** The server of the page, started unless it runs. */
  async serve() {
    if (this.#server === null) await this.restart("");
  }

  /** Starts the server of the page anew, with these flags. */
  async restart(flags) {
    await this.#stopServer();
    const words = (await this.localize(flags)).match(/(?:[^\s'"]|'[^']*'|"[^"]*")+/g) ?? [];
    const split = words.map((word) => word.replace(/'([^']*)'|"([^"]*)"/g, (_, one, two) => one ?? two));
    const address = await this.localize("127.0.0.1:8080");
    const bind = split.some((flag) => /^--bind(=|$)/.test(flag)) ? [] : ["--bind", address];
    const child = spawn(BIN, ["serve", ...bind, ...split], {
      cwd: this.directory, env: this.environment, stdio: ["ignore", "ignore", "pipe"],
    });
    const ended = once(child, "exit");
    ended.catch(() => {}); // `listening` rejects as well
    this.#server = { child, ended };
    let log = "";
    const listening = new Promise((resolve, reject) => {
      child.stderr.setEncoding("utf8").on("data", (text) => {
        log += text;
        if (/listening on http/.test(log)) resolve();
      });
      child.once("close", () => reject(new Error(`the server has ended: ${this.globalize(log)}`)));
      child.once("error", reject);
    });
    await within(START_TIMEOUT, "the server's start", listening);
  }

  /** No server for what follows. */
  async withoutServer() {
    await this.#stopServer();
    this.#server = false;
  }

  async #stopServer() {
    if (!this.#server) return;
    const { child, ended } = this.#server;
    this.#server = null;
    child.kill("SIGTERM");
    try {
      await within(STOP_TIMEOUT, "the server's end", ended);
    } catch {
      if (child.kill("SIGKILL")) await ended;
    }
  }

  /** Runs a command that has to succeed, and to print this if it is not empty. */
  async expect(command, output) {
    const { output: actual, code, errors } = await this.run(command);
    if (code !== 0) throw new Error(`$ ${command}\nexit code ${code}\n${actual.trim()}\n${errors}`);
    if (output && !sameOutput(output, actual)) {
      throw new Error(`$ ${command}\nexpected:\n${output}\nactual:\n${actual.trim()}\n${errors}`);
    }
  }

  /** Runs a command in the page's shell, and returns what it wrote and its exit code. */
  async run(command) {
    if (/\b(sudo|apt-get)\b/.test(command)) throw new Error(`$ ${command}\nneeds "console held-by PATH"`);
    let local = await this.localize(command);
    const address = await this.#startedBy(local);
    // The default address is one of the page, too.
    if (address && !/\bPRESENCE_BIND=|--bind\b/.test(local)) {
      local = local.replace(PRESENCE, `env PRESENCE_BIND=${address} presence`);
    }
    const shell = (this.#shell ??= this.#startShell());
    const written = statSync(shell.log).size;
    try {
      const { output, code } = await within(COMMAND_TIMEOUT, "the command", Promise.race([shell.run(local), shell.ended]));
      if (address) await this.#answering(address);
      return { output: this.globalize(output), code, errors: this.#errors(shell, written) };
    } catch (error) {
      const errors = this.#errors(shell, written);
      // The next command gets a shell of its own: this one has ended, or is busy.
      await this.#endShell();
      throw new Error(`$ ${command}\n${error.message}\n${errors}`);
    }
  }

  #errors({ log }, written) {
    return this.globalize(readFileSync(log).subarray(written).toString().trimEnd().split("\n").slice(-20).join("\n"));
  }

  /** Where the server will listen that a command starts in the background, if it does. */
  async #startedBy(local) {
    if (!/&\s*$/.test(local) || !PRESENCE.test(local)) return null;
    const given = local.match(/(?:--bind[ =]|\bPRESENCE_BIND=)["']?([^\s,"']+)/)?.[1];
    const own = await this.localize("127.0.0.1:8080");
    if (this.#server && (given ?? own) === own) {
      throw new Error(`$ ${this.globalize(local)}\nthe server of the page listens there; stop it: <!-- server: none -->`);
    }
    return given ?? own;
  }

  #startShell() {
    const log = join(this.scratch, `stderr-${Date.now()}`);
    // A process group of its own, so that what runs in the background ends with it.
    const errors = openSync(log, "a");
    const child = spawn("bash", ["--norc", "-s"], {
      cwd: this.directory, env: this.environment, stdio: ["pipe", "pipe", errors], detached: true,
    });
    closeSync(errors);
    let output = "";
    let look = () => {};
    child.stdin.on("error", () => {}); // it has ended
    child.stdout.setEncoding("utf8").on("data", (text) => {
      output += text;
      look();
    });
    const ended = once(child, "exit").then(() => {
      throw new Error("the shell has ended");
    });
    ended.catch(() => {}); // the next command finds out
    const run = (command) => new Promise((resolve) => {
      const end = `end-of-command-${Math.random().toString(36).slice(2)}`;
      output = "";
      look = () => {
        const match = output.match(new RegExp(`\\n${end} (\\d+)\\n`));
        if (match) resolve({ output: output.slice(0, match.index), code: Number(match[1]) });
      };
      // As one word, so that an unfinished command is an error; without input, so that it does not read
      // the next command.
      child.stdin.write(`eval ${quote(command)} </dev/null\nprintf '\\n%s %s\\n' ${end} $?\n`);
    });
    return { child, log, ended, run };
  }

  async #endShell() {
    const shell = this.#shell;
    this.#shell = null;
    if (!shell) return;
    const group = shell.child.pid;
    for (const name of ["SIGTERM", "SIGKILL"]) {
      const end = Date.now() + KILL_TIMEOUT;
      if (!signal(group, name)) return;
      while (Date.now() < end && signal(group, 0)) await pause();
    }
  }

  /** Waits for the server that a command has started in the background. */
  async #answering(address) {
    const end = Date.now() + START_TIMEOUT;
    while (!(await fetch(`http://${address}/healthz`).catch(() => null))) {
      if (Date.now() > end) throw new Error(`nothing answers at ${this.globalize(address)}`);
      await pause();
    }
  }

  async close() {
    await this.#stopServer();
    await this.#endShell();
    rmSync(this.#root, { recursive: true, force: true, maxRetries: 10 });
  }
}
