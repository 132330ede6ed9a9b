// Where the blocks of a page run: a temporary directory, a shell, a server, and ports that are free.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";

const BIN = process.env.PRESENCE_BIN ?? "presence";
const COMMAND_TIMEOUT = 20_000;
const START_TIMEOUT = 20_000;
const STOP_TIMEOUT = 15_000;

/** Rejects when a promise takes too long. */
export async function within(milliseconds, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing after ${milliseconds / 1000} s`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

export class Place {
  directory = mkdtempSync(join(tmpdir(), "presence-docs-"));
  #ports = new Map();
  #server = null;
  #shell = null;
  #log = "";

  /** The page's text with free ports instead of 8000 to 8099. */
  async localize(text) {
    for (const [port] of text.matchAll(/\b80\d\d\b/g)) {
      if (!this.#ports.has(port)) this.#ports.set(port, String(await freePort()));
    }
    return text.replace(/\b80\d\d\b/g, (port) => this.#ports.get(port));
  }

  /** An output with the ports of the page. */
  globalize(text) {
    for (const [port, free] of this.#ports) text = text.replaceAll(free, port);
    return text;
  }

  get environment() {
    const own = Object.entries(process.env).filter(([name]) => !name.startsWith("PRESENCE_"));
    return { ...Object.fromEntries(own), HOME: this.directory, PATH: `${dirname(BIN)}${delimiter}${process.env.PATH}` };
  }

  /** The server of the page, started unless it runs. */
  async serve() {
    if (this.#server === null) await this.restart("");
  }

  /** Starts the server of the page anew, with these flags. */
  async restart(flags) {
    await this.#stopServer();
    const address = await this.localize("127.0.0.1:8080");
    const split = flags.match(/'[^']*'|\S+/g)?.map((flag) => flag.replace(/^'|'$/g, "")) ?? [];
    const bind = split.includes("--bind") ? [] : ["--bind", address];
    const child = spawn(BIN, ["serve", ...bind, ...split], {
      cwd: this.directory, env: this.environment, stdio: ["ignore", "ignore", "pipe"],
    });
    this.#server = { child, ended: once(child, "exit") };
    let log = "";
    const listening = new Promise((resolve, reject) => {
      child.stderr.setEncoding("utf8").on("data", (text) => {
        log += text;
        if (/listening on http/.test(log)) resolve();
      });
      child.once("exit", () => reject(new Error(`the server has ended: ${log}`)));
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
    await within(STOP_TIMEOUT, "the server's end", ended).catch(() => child.kill("SIGKILL"));
  }

  /** Runs a command in the page's shell, and returns what it wrote and its exit code. */
  async run(command) {
    const local = await this.localize(command);
    this.#shell ??= this.#startShell();
    const { child, log, ended } = this.#shell;
    const end = `end-of-command-${Math.random().toString(36).slice(2)}`;
    const seen = this.#log.length;
    child.stdin.write(`${local}\nprintf '\\n%s %s\\n' ${end} $?\n`);
    const pattern = new RegExp(`\\n${end} (\\d+)\\n`);
    const answered = new Promise((resolve) => {
      const look = () => {
        const match = this.#log.slice(seen).match(pattern);
        if (!match) return;
        child.stdout.off("data", look);
        resolve(match);
      };
      child.stdout.on("data", look);
    });
    const match = await within(COMMAND_TIMEOUT, command, Promise.race([answered, ended]));
    const output = this.globalize(this.#log.slice(seen, seen + match.index));
    const errors = readFileSync(log, "utf8").split("\n").slice(-10).join("\n");
    if (/&\s*$/.test(command) && /\bpresence\b/.test(command)) await this.#answering(local);
    return { output, code: Number(match[1]), errors };
  }

  #startShell() {
    const log = join(this.directory, ".stderr");
    // A process group of its own, so that what runs in the background ends with it.
    const child = spawn("bash", ["--norc", "-c", `exec 2>'${log}'; exec bash --norc -s`], {
      cwd: this.directory, env: this.environment, stdio: ["pipe", "pipe", "ignore"], detached: true,
    });
    child.stdout.setEncoding("utf8").on("data", (text) => (this.#log += text));
    const ended = once(child, "exit").then(() => {
      throw new Error("the shell has ended");
    });
    ended.catch(() => {}); // the next command finds out
    return { child, log, ended };
  }

  /** Waits for the server that a command has started in the background. */
  async #answering(command) {
    const address = command.match(/--bind[ =](\S+)/)?.[1];
    if (!address) return;
    const end = Date.now() + START_TIMEOUT;
    for (;;) {
      const answer = await fetch(`http://${address}/healthz`).catch(() => null);
      if (answer) return;
      if (Date.now() > end) throw new Error(`nothing answers at ${address}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async close() {
    await this.#stopServer();
    if (this.#shell) {
      const { child } = this.#shell;
      const ended = once(child, "exit");
      for (const signal of ["SIGTERM", "SIGKILL"]) {
        try {
          process.kill(-child.pid, signal);
        } catch {
          break; // the group has ended
        }
        await within(2000, "the shell's end", ended).catch(() => {});
      }
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}
