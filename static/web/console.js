// Buttons of the console that ask something without leaving the page: a test of a channel, its chats, the preview of a text.
(() => {
  const token = () => document.querySelector("[name=csrfmiddlewaretoken]").value;
  // What is sent: the whole form; or, in a row of several (`layers-0-channels-1-channel`), the fields of that row by their last names.
  function fields(button, form) {
    const all = new FormData(form);
    const names = (button.dataset.fields || "").split(" ").filter(Boolean);
    if (!names.length) return all;
    const row = button.closest(".form-group") || form;
    const found = new FormData();
    for (const name of names) {
      const field = [...row.querySelectorAll("[name]")].find((one) => one.name === name || one.name.endsWith(`-${name}`));
      if (field) found.append(name, field.value);
    }
    return found;
  }
  async function ask(button) {
    const answer = button.closest("[data-asks]").querySelector("[data-answer]");
    const form = button.closest("form");
    button.disabled = true;
    answer.textContent = answer.dataset.wait;
    try {
      const body = fields(button, form);
      const reply = await fetch(button.dataset.ask, { method: "POST", body, headers: { "X-CSRFToken": token() }, redirect: "error" });
      if (!reply.ok) throw new Error(String(reply.status));
      answer.innerHTML = await reply.text();
    } catch {
      answer.textContent = answer.dataset.lost;
    }
    button.disabled = false;
    // The bar with the save buttons lies over the bottom of the page.
    answer.scrollIntoView({ block: "center", behavior: "smooth" });
  }
  function add(button) {
    const field = document.getElementById(button.dataset.into);
    const lines = field.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!lines.includes(button.dataset.add)) field.value = [...lines, button.dataset.add].join("\n");
    field.dispatchEvent(new Event("input", { bubbles: true }));
    button.textContent = button.dataset.done;
    button.disabled = true;
  }
  // Beside a group channel of a layer: what it can @, and only the fields that then count.
  let mentions = {};
  function say(select) {
    const row = select.closest(".form-group");
    const note = row && row.querySelector("[data-mentions]");
    if (!note) return;
    const chosen = mentions[select.value];
    note.textContent = chosen ? chosen.words : "";
    for (const [name, shown] of [["mention", !chosen || chosen.by.length], ["mapping_table", !chosen || chosen.by.includes("table")]]) {
      const field = row.querySelector(`[name$="-${name}"]`);
      const box = field && (field.closest(`.field-${name}`) || field.parentElement);
      // What is set stays in sight, so that it can be switched off.
      if (box) box.hidden = !shown && !field.checked && !(field.tagName === "SELECT" && field.value);
    }
  }
  const selects = () => document.querySelectorAll('select[name$="-channel"]');
  document.addEventListener("change", (event) => event.target.matches('select[name$="-channel"]') && say(event.target));
  document.addEventListener("DOMContentLoaded", () => {
    const data = document.getElementById("mentions");
    if (data) mentions = JSON.parse(data.textContent);
    selects().forEach(say);
  });
  document.addEventListener("formset:added", () => selects().forEach(say));
  // In a list whose rows are closed a new one begins open: closed it is a line with nothing to type into.
  document.addEventListener("alpine:init", () => {
    const added = document.querySelectorAll('.form-group.template[x-data*="openRow"]');
    added.forEach((row) => row.setAttribute("x-data", "{ openRow: true }"));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-ask], [data-add]");
    if (button) button.dataset.ask ? ask(button) : add(button);
  });
})();
