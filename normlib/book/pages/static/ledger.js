// The filter of the ledger. Its state stands in the address, so a filtered view can be linked; without this script every claim is there.
(() => {
  "use strict";
  const form = document.querySelector(".claim-filter");
  const told = document.querySelector(".claim-count");
  const groups = [...document.querySelectorAll(".claim-group")];
  const claims = [...document.querySelectorAll(".claim")].map((entry) => ({ entry, text: entry.textContent.toLowerCase() }));
  const chosen = (name) => new FormData(form).getAll(name).filter(Boolean);
  const linked = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest(".claim");

  function matches({ entry, text }) {
    const words = chosen("q").join(" ").toLowerCase().split(/\s+/);
    const is = (name) => !chosen(name).length || chosen(name).includes(entry.dataset[name]);
    return ["verdict", "chapter", "source"].every(is) && words.every((word) => text.includes(word));
  }

  function say(found, besides) {
    const counts = new Map();
    found.forEach(({ entry }) => counts.set(entry.dataset.verdict, (counts.get(entry.dataset.verdict) ?? 0) + 1));
    const verdicts = [...form.elements.verdict].map((box) => box.value).filter((verdict) => counts.has(verdict));
    const parts = verdicts.map((verdict) => `${counts.get(verdict)} ${verdict}`).join(", ");
    const total = `${claims.length} claim${claims.length === 1 ? "" : "s"}`;
    const number = found.length === claims.length ? total : `${found.length} of ${total}`;
    told.textContent = `${number}${parts ? `: ${parts}` : ""}.` + (besides ? " The claim of the link is shown as well." : "");
  }

  function show() {
    const found = claims.filter(matches);
    const shown = new Set(found.map(({ entry }) => entry));
    const target = linked();
    const besides = Boolean(target) && !shown.has(target);
    if (target) shown.add(target);
    claims.forEach(({ entry }) => { entry.hidden = !shown.has(entry); });
    groups.forEach((group) => { group.hidden = !group.querySelector(".claim:not([hidden])"); });
    say(found, besides);
  }

  function read() {
    const asked = new URLSearchParams(location.search);
    [...form.elements.verdict].forEach((box) => { box.checked = asked.getAll("verdict").includes(box.value); });
    for (const name of ["chapter", "source", "q"]) {
      const value = asked.get(name) ?? "";
      const options = form.elements[name].options;
      form.elements[name].value = !options || [...options].some((option) => option.value === value) ? value : "";
    }
    show();
  }

  // A choice replaces what the address asked for, and lets go of the claim it led to.
  function changed() {
    const asked = new URLSearchParams(location.search);
    ["verdict", "chapter", "source", "q"].forEach((name) => {
      asked.delete(name);
      chosen(name).forEach((value) => asked.append(name, value));
    });
    const query = asked.toString();
    history.replaceState(null, "", location.pathname + (query ? `?${query}` : ""));
    show();
  }

  function follow() {
    show();
    linked()?.scrollIntoView();
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", changed);
  form.addEventListener("reset", () => setTimeout(changed));
  window.addEventListener("hashchange", follow);
  window.addEventListener("popstate", read);
  window.addEventListener("pageshow", () => { read(); linked()?.scrollIntoView(); });
  read();
})();
