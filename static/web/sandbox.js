// The sandbox: asks once a second for what is new and plays it on the phones and in the group chats. Texts come from outside, so they
// are only ever put in as text.
(() => {
  const form = document.getElementById("sandbox");
  const words = JSON.parse(document.getElementById("words").textContent);
  const csrf = form.querySelector("[name=csrfmiddlewaretoken]").value;
  const trouble = document.getElementById("trouble");
  const RINGS = 45_000;
  const all = new Map(); // id -> message
  const read = new Set(); // ids whose app was opened
  const phones = new Map(); // member id -> {section, app, call}
  const groups = new Map(); // channel id -> element
  let tag = null, cursor = "", skew = 0, first = true, shownTrouble = "";

  function h(name, props, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(props || {})) {
      if (key === "class") made.className = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value === true) made.setAttribute(key, "");
      else if (value !== false && value != null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child != null && child !== false));
    return made;
  }

  // Only our own pages are links; everything else stays text.
  function linked(text) {
    const base = location.origin.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const ours = new RegExp(`((?:${base}|https?://[^\\s/]+)?/i/[\\w.-]+/(?:\\?ack=1)?)`);
    return text.split(ours).map((part, i) => {
      if (i % 2 === 0) return part;
      const path = part.replace(/^https?:\/\/[^/]+/, "");
      return h("a", { href: path, target: "_blank", rel: "noopener" }, location.host + path.slice(0, 7) + "…");
    });
  }

  const clock = (ms, zone) => new Intl.DateTimeFormat(document.documentElement.lang, { hour: "2-digit", minute: "2-digit", hour12: false, timeZone: zone }).format(ms);
  const now = () => Date.now() + skew;
  function ago(ms, zone) {
    const minutes = Math.floor((now() - ms) / 60_000);
    return minutes < 1 ? words.now : minutes < 60 ? words.minute.replace("%s", minutes) : clock(ms, zone);
  }

  async function press(message, verb) {
    const body = new URLSearchParams({ delivery: message.id, do: verb });
    return post(form.dataset.press, body);
  }
  async function post(url, body) {
    try {
      const answer = await fetch(url, { method: "POST", body, headers: { "X-CSRFToken": csrf, Accept: "application/json" }, redirect: "error" });
      const said = await answer.json().catch(() => ({}));
      say(answer.ok ? "" : said.error || words.failed, 6000);
      look();
      return answer.ok;
    } catch {
      say(words.failed, 6000);
      return false;
    }
  }
  function say(text, fades) {
    shownTrouble = text;
    trouble.textContent = text;
    trouble.hidden = !text;
    if (text && fades) setTimeout(() => { if (shownTrouble === text) say(""); }, fades);
  }

  const sev = (message) => "sev-" + (message.severity || "info").toLowerCase();
  const single = (message) => (message.incidents.length === 1 ? message.incidents[0] : null);

  function buttons(message) {
    if (!message.buttons.length || message.kind === "voice") return null;
    return h("div", { class: "keys" }, ...message.buttons.map((verb) =>
      h("button", { type: "button", class: verb === "acknowledge" ? "primary" : "", onclick: (event) => {
        event.stopPropagation();
        for (const one of event.target.parentNode.children) one.disabled = true;
        press(message, verb).then((ok) => { if (!ok) for (const one of event.target.parentNode.children) one.disabled = false; });
      } }, words[verb])));
  }

  function bubble(message, zone) {
    const one = single(message);
    const missed = message.kind === "voice" && message.state === "sent";
    // A mail has a subject; of everything else the first line is what a lock screen shows large.
    const [line, ...rest] = message.text.split("\n");
    const title = message.kind === "voice" ? (missed ? words.missed : words.called) : message.kind === "email" ? message.subject : line;
    const text = message.kind === "voice" || message.kind === "email" ? message.text : rest.join("\n").trim();
    return h("article", { class: `msg m-${message.kind} ${sev(message)} s-${message.state}`, "data-id": message.id },
      h("header", {}, h("span", { class: `icon i-${message.kind}` }), h("span", { class: "from" }, message.kind === "group" ? words.bot : words[message.kind]),
        message.repeat && h("span", { class: "tag" }, words.repeat),
        h("time", { datetime: new Date(message.at).toISOString() }, ago(message.at, zone))),
      h("h3", { dir: "auto" }, title),
      h("p", { dir: "auto" }, ...linked(text)),
      message.incidents.length > 1 && h("ul", {}, ...message.incidents.map((incident) =>
        h("li", { dir: "auto" }, h("a", { href: incident.url, target: "_blank", rel: "noopener" }, "#" + incident.num), " ", incident.title))),
      one && h("footer", {}, h("span", { class: "tag state p-" + one.progress.toLowerCase() }, one.progress_words),
        h("a", { href: one.url, target: "_blank", rel: "noopener" }, words.details)),
      buttons(message));
  }

  function fill(screen, messages, zone) {
    const known = new Map([...screen.children].filter((el) => el.dataset.id).map((el) => [el.dataset.id, el]));
    const wanted = messages.map((message) => {
      const stamp = JSON.stringify([message.state, message.buttons, message.incidents.map((i) => i.progress), ago(message.at, zone)]);
      const old = known.get(String(message.id));
      if (old && old.dataset.stamp === stamp) return old;
      const made = bubble(message, zone);
      made.dataset.stamp = stamp;
      if (!old && !first) made.classList.add("fresh");
      return made;
    });
    const focused = document.activeElement;
    if (!wanted.length) { screen.replaceChildren(h("p", { class: "dim none" }, words.empty)); return; }
    if (wanted.length !== screen.children.length || wanted.some((el, i) => screen.children[i] !== el)) screen.replaceChildren(...wanted);
    if (focused && focused.isConnected) focused.focus({ preventScroll: true });
  }

  const ringing = (message) => message.kind === "voice" && message.state === "sent" && now() - message.at < RINGS;

  function draw() {
    const sorted = [...all.values()].sort((a, b) => b.at - a.at || b.id - a.id);
    for (const [id, phone] of phones) {
      const mine = sorted.filter((message) => message.member === id);
      const silent = mine.filter((message) => !ringing(message) && !(phone.call && phone.call.id === message.id));
      fill(phone.screen, silent.filter((message) => !phone.app || message.kind === phone.app).slice(0, 40), phone.zone);
      for (const button of phone.dock) {
        const count = silent.filter((message) => message.kind === button.dataset.app && !read.has(message.id) && message.state !== "answered").length;
        const badge = button.querySelector("b");
        badge.textContent = count > 99 ? "99+" : count;
        badge.hidden = !count;
      }
      drawCall(phone, mine);
    }
    for (const [id, screen] of groups) {
      const end = screen.scrollHeight - screen.scrollTop - screen.clientHeight < 60;
      fill(screen, sorted.filter((message) => message.member === null && message.channel === id).slice(0, 60).reverse());
      if (end || first) screen.scrollTop = screen.scrollHeight;
    }
    first = false;
  }

  function drawCall(phone, mine) {
    const incoming = phone.call ? null : mine.find(ringing);
    const shown = phone.call || incoming;
    phone.box.hidden = !shown;
    const stamp = shown ? `${shown.id} ${Boolean(phone.call)}` : "";
    if (phone.box.dataset.stamp === stamp) return;
    phone.box.dataset.stamp = stamp;
    if (!shown) { phone.box.replaceChildren(); return; }
    phone.box.className = `call ${sev(shown)} ${phone.call ? "talking" : "ringing"}`;
    const over = () => { phone.call = null; draw(); };
    if (!phone.call) {
      phone.box.replaceChildren(
        h("p", { class: "dim" }, words.calling), h("div", { class: "ring" }, h("span", { class: "icon i-app" })), h("h3", {}, words.app),
        h("p", { dir: "auto" }, single(shown) ? single(shown).title : shown.subject),
        h("div", { class: "pick" },
          h("button", { type: "button", class: "down", "aria-label": words.hangUp, title: words.hangUp, onclick: () => { shown.state = "failed"; press(shown, "hang_up"); draw(); } }, h("span", { class: "icon i-voice" })),
          h("button", { type: "button", class: "up", "aria-label": words.pickUp, title: words.pickUp, onclick: () => { phone.call = shown; press(shown, "pick_up"); draw(); } }, h("span", { class: "icon i-voice" }))));
      return;
    }
    const keys = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "*", "0", "#"];
    const under = { 1: words.acknowledge, 2: words.escalate, 3: words.close };
    phone.box.replaceChildren(
      h("p", { class: "dim" }, words.inCall), h("p", { class: "speech", dir: "auto" }, shown.text), h("p", { class: "dim small" }, words.keys),
      h("div", { class: "pad" }, ...keys.map((key) => h("button", { type: "button", disabled: !under[key], title: under[key], "data-key": key, onclick: async () => {
        for (const one of phone.box.querySelectorAll(".pad button")) one.disabled = true;
        await press(shown, key);
        over();
      } }, key))),
      h("div", { class: "pick" }, h("button", { type: "button", class: "down", "aria-label": words.hangUp, title: words.hangUp, onclick: over }, h("span", { class: "icon i-voice" }))));
  }

  let looking = false;
  async function look() {
    if (looking) return;
    looking = true;
    try {
      const query = cursor ? `?after=${encodeURIComponent(cursor)}` : "";
      const answer = await fetch(form.dataset.messages + query, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store", redirect: "error" });
      document.getElementById("live-dot").classList.toggle("on", answer.ok || answer.status === 304);
      if (answer.status === 403) say(words.signIn);
      if (answer.ok) {
        const body = await answer.json();
        tag = answer.headers.get("ETag");
        cursor = body.cursor;
        skew = body.now - Date.now();
        for (const message of body.messages) all.set(message.id, message);
        if (shownTrouble === words.offline) say("");
      } else if (answer.status === 304 && shownTrouble === words.offline) say("");
    } catch {
      document.getElementById("live-dot").classList.remove("on");
      say(words.offline);
    } finally {
      looking = false;
    }
    draw();
  }

  function tick() {
    for (const phone of phones.values()) phone.wall.textContent = clock(now(), phone.zone);
    if (!document.hidden) look();
  }

  for (const section of document.querySelectorAll(".who")) {
    const phone = { app: "", call: null, zone: section.dataset.zone, screen: section.querySelector(".screen"), wall: section.querySelector(".wall"), box: section.querySelector(".call"), dock: [...section.querySelectorAll(".dock button")] };
    const id = Number(section.dataset.member);
    for (const button of phone.dock)
      button.addEventListener("click", () => {
        phone.app = phone.app === button.dataset.app ? "" : button.dataset.app;
        for (const other of phone.dock) other.setAttribute("aria-pressed", String(other.dataset.app === phone.app));
        for (const message of all.values()) if (message.member === id && message.kind === button.dataset.app) read.add(message.id);
        draw();
      });
    phones.set(id, phone);
  }
  for (const chat of document.querySelectorAll(".chat")) groups.set(Number(chat.dataset.channel), chat.querySelector(".screen"));

  const fire = (status) => post(form.dataset.alert, new URLSearchParams({ title: document.getElementById("fire-title").value, status }));
  document.getElementById("fire-go")?.addEventListener("click", () => fire(document.getElementById("fire-severity").value));
  document.getElementById("fire-ok")?.addEventListener("click", () => fire("Ok"));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  tick();
  setInterval(tick, 1000);
})();
