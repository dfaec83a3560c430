"use strict";
const [slot, live, toasts] = ["dialog", "announce", "toasts"].map((id) => () => document.getElementById(id));
let opener = null;

function announce(text) {
  live().textContent = "";
  setTimeout(() => (live().textContent = text), 60);
}

const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
const button = (textContent, onclick) => make("button", { type: "button", className: "button small", textContent, onclick });

function toast({ message, kind = "ok", retry }) {
  if ([...toasts().children].some((box) => box.firstChild.textContent === message)) return announce(message);
  const box = make("div", { className: `toast toast-${kind}` });
  box.append(make("span", { textContent: message }));
  const close = () => (box.remove(), toasts().children.length || toasts().hidePopover?.());
  if (retry) box.append(button("Try again", () => (close(), retry())));
  box.append(button("Close", close));
  toasts().append(box);
  raise();
  announce(message);
  const wait = () => setTimeout(() => (box.matches(":hover, :focus-within") ? wait() : close()), 7000);
  if (kind !== "danger") wait();
}

// A modal dialog makes the rest of the page inert, messages included: they move inside while it is open.
function raise(home = slot().querySelector("dialog[open]") || document.body) {
  home.append(live(), toasts());
  if (toasts().children.length) toasts().showPopover?.();
}

function closeDialog() {
  raise(document.body);
  slot().querySelector("dialog[open]")?.close();
  slot().replaceChildren();
  if (opener?.isConnected) opener.focus();
  opener = null;
}

const inside = (element) => element && slot().contains(element);
document.addEventListener("close", (event) => inside(event.target) && closeDialog(), true);

const swapped = (status) => status < 400 || status === 409 || status === 422;
const reasons = { // of what a proxy answers: the pages' own answers bring their words
  401: "You have been signed out. Reload the page to sign in again.",
  429: "Too many tries just now. Wait a moment.",
  503: "The service is busy. Nothing was lost.",
};
function busy(element) {
  if (!element || element.ariaBusy) return;
  element.ariaBusy = "true";
  if (!element.matches("button")) return;
  Object.assign(element.dataset, { label: element.innerHTML, focus: element === document.activeElement || "" });
  element.disabled = true;
  if (element.dataset.busy) element.textContent = element.dataset.busy;
}

function restore(element) {
  element.ariaBusy = null;
  if (element.dataset.label === undefined) return;
  element.innerHTML = element.dataset.label;
  element.disabled = false;
  delete element.dataset.label;
  if (element.dataset.focus && document.activeElement === document.body) element.focus();
}

const again = ({ sourceElement: element, request }) =>
  element.isConnected && (() => (element.matches("form") ? element.requestSubmit(request.submitter) : element.click()));

document.addEventListener("htmx:before:request", ({ detail: { ctx } }) => {
  if (ctx.target === slot()) opener ??= ctx.sourceElement.closest("details.menu")?.firstElementChild || ctx.sourceElement;
  ctx.pressed = [ctx.request.submitter || (ctx.sourceElement.matches("a, button") && ctx.sourceElement), ctx.target.matches(".wait") && ctx.target];
  ctx.pressed.forEach(busy);
});
document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (!ctx.keepIndicators) ctx.pressed?.filter(Boolean).forEach(restore);
  if (!slot().childElementCount) opener = null;
});
document.addEventListener("htmx:before:swap", (event) => {
  const { ctx, tasks } = event.detail;
  if (!swapped(ctx.response?.status) && !ctx.hx.retarget) return event.preventDefault();
  const { target, swapSpec } = tasks.find((task) => task.type === "main") || {};
  if (target === slot()) raise(document.body), opener?.closest("details.menu")?.removeAttribute("open");
  else if (inside(ctx.sourceElement) && !inside(target) && swapSpec?.style !== "none") closeDialog();
});
document.addEventListener("htmx:after:swap", () => {
  settle();
  slot().querySelector("dialog:not([open])")?.showModal();
  raise();
});
document.addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
  const status = ctx.response.status;
  if (swapped(status) || ctx.hx.retarget || ctx.hx.redirect || ctx.hx.trigger?.includes("toast")) return;
  const message = reasons[status] || "Something went wrong on our side. Try again in a moment.";
  toast({ message, kind: "danger", retry: status >= 429 && again(ctx) });
});
document.addEventListener("htmx:error", ({ detail: { ctx } }) => {
  if (ctx && !ctx.response) toast({ message: "No answer from the server. Check your connection.", kind: "danger", retry: again(ctx) });
});
document.addEventListener("toast", (event) => toast(event.detail));

// Plain forms: busy while the page loads, as it was when the browser's back button returns to it.
document.addEventListener("submit", (event) => {
  if (!event.defaultPrevented && event.target.method === "post") setTimeout(() => busy(event.submitter));
});
addEventListener("pageshow", (event) => event.persisted && document.querySelectorAll("[aria-busy]").forEach(restore));

// Empty filters stay out of the address.
document.addEventListener("formdata", ({ target, formData }) => {
  if (target.method !== "get") return;
  for (const [name, value] of [...formData]) if (value === "") formData.delete(name);
});

async function copy(control) {
  const source = document.querySelector(control.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.value ?? source.textContent.trim());
  } catch {
    source.select ? source.select() : getSelection().selectAllChildren(source);
    return announce("Selected. Press Control or Command and C to copy.");
  }
  const label = control.querySelector("[data-label]") || control;
  const before = (control.dataset.text ??= label.textContent);
  label.textContent = "Copied";
  announce("Copied");
  setTimeout(() => (label.textContent = before), 2000);
}

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-copy]")) copy(event.target.closest("[data-copy]"));
  if (event.target.closest("[data-close]")) closeDialog();
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.activeElement.closest("details.menu[open]");
  if (menu) (menu.open = false), menu.querySelector("summary").focus();
});
document.addEventListener("change", ({ target }) => {
  if (!target.matches("[data-theme-choice]")) return;
  document.cookie = `theme=${target.value};path=/;max-age=31536000;SameSite=Lax`;
  document.documentElement.dataset.theme = target.value;
});
function settle() {
  document.querySelectorAll("[data-needs-js]").forEach((element) => (element.hidden = false));
  document.querySelectorAll("[data-address]").forEach((once) => history.replaceState(history.state, "", once.dataset.address));
  document.querySelectorAll("[data-timezone]").forEach((field) => (field.value = Intl.DateTimeFormat().resolvedOptions().timeZone));
}
settle();
addEventListener("beforeunload", (event) => document.querySelector("[data-unsaved]:not(:checked)") && event.preventDefault());
