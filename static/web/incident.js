// Looks again every five seconds, and shows what is new unless somebody is writing or choosing something.
(() => {
  const live = document.getElementById("live");
  let tag = null;
  const busy = () => {
    const at = document.activeElement;
    return document.hidden || (at && /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName)) || [...live.querySelectorAll("input[name]:not([type=hidden])")].some((i) => i.value);
  };
  async function look() {
    if (busy()) return;
    try {
      const answer = await fetch(location.pathname, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store", redirect: "error" });
      if (answer.status !== 200) return;
      const first = tag === null;
      tag = answer.headers.get("ETag");
      if (first || busy()) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
      if (fresh) { live.replaceChildren(...fresh.childNodes); count(); }
    } catch { /* offline: the next look finds out */ }
  }
  // Instants that are still to come also say how long that is.
  function count() {
    for (const time of live.querySelectorAll("time[data-until]")) {
      const left = Math.round((Date.parse(time.dateTime) - Date.now()) / 1000);
      time.dataset.left = left > 0 ? (left >= 60 ? `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}` : `${left} s`) : "…";
    }
  }
  const chosen = live.querySelector(".put-forward");
  if (chosen) chosen.focus({ preventScroll: true });
  count();
  look();
  setInterval(look, 5000);
  setInterval(count, 1000);
})();
