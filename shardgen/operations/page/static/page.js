// Keeps the page as the run is: replaces the parts that have changed, in place, and copies commands.
"use strict";

const root = document.querySelector(".shardgen");
const connection = document.querySelector("[data-connection]");

const keyOf = (node) => (node.nodeType === 1 ? node.dataset.key : undefined);

// What is open stays open, what has the focus keeps it: nodes are changed, and replaced only by other kinds.
function update(old, now) {
  if (old.nodeName !== now.nodeName) {
    old.replaceWith(now);
  } else if (old.nodeType !== 1) {
    if (old.data !== now.data) old.data = now.data;
  } else {
    for (const { name } of [...old.attributes]) {
      if (!now.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of now.attributes) {
      if (old.getAttribute(name) !== value && name !== "open") old.setAttribute(name, value);
    }
    updateChildren(old, now);
  }
}

function updateChildren(old, now) {
  const kept = new Map([...old.children].filter(keyOf).map((node) => [keyOf(node), node]));
  let at = old.firstChild;
  for (const node of [...now.childNodes]) {
    const same = keyOf(node) ? kept.get(keyOf(node)) : at && !keyOf(at) ? at : null;
    if (!same) {
      old.insertBefore(node, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    update(same, node);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// The server writes its own time of day; whoever looks may be elsewhere.
function inLocalTime(within) {
  for (const time of within.querySelectorAll("time")) {
    const at = new Date(time.dateTime);
    const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if ("seconds" in time.dataset) options.second = "2-digit";
    if (at.toDateString() !== new Date().toDateString()) Object.assign(options, { weekday: "short", day: "numeric", month: "short" });
    time.textContent = at.toLocaleString("en-GB", options);
  }
}

function show(look) {
  for (const [name, keys] of Object.entries(look.lists)) {
    const list = root.querySelector(`[data-list="${name}"]`);
    const parts = new Map([...list.children].map((part) => [part.dataset.key, part]));
    for (const key of keys) {
      const part = parts.get(key) ?? document.createElement("div");
      part.dataset.part = part.dataset.key = key;
      if (list.children[keys.indexOf(key)] !== part) list.insertBefore(part, list.children[keys.indexOf(key)] ?? null);
      parts.delete(key);
    }
    for (const part of parts.values()) part.remove();
  }
  for (const [key, html] of Object.entries(look.parts)) {
    const template = document.createElement("template");
    template.innerHTML = html;
    inLocalTime(template.content);
    updateChildren(root.querySelector(`[data-part="${CSS.escape(key)}"]`), template.content);
  }
  document.title = look.title;
}

function say(text) {
  if (connection.textContent !== text) connection.textContent = text;
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    // Without https only an older way is left.
    getSelection().selectAllChildren(button.previousElementSibling);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});

inLocalTime(root);
const events = new EventSource(`events?from=${root.dataset.version}`);
events.addEventListener("open", () => say(""));
events.addEventListener("look", (event) => show(JSON.parse(event.data)));
events.addEventListener("over", () => {
  events.close();
  say("The command that served this page has ended; this is the last known state.");
});
events.addEventListener("error", () => {
  if (events.readyState === EventSource.CLOSED) say("This page is no longer updated; reload it.");
  else say("No connection; this is the last known state. Trying again.");
});
