// The shelf: pieces that this browser keeps.

import { count } from "./music.js";
import { tell } from "./notices.js";
import * as store from "./store.js";

const byId = (id) => document.getElementById(id);

/** Opens the shelf; `open(id)` takes a piece from it. */
export async function showShelf(piece, open) {
  await piece.save();
  await fill(piece, open);
  byId("shelf-dialog").showModal();
}

async function fill(piece, open) {
  const pieces = await store.pieces();
  const rows = pieces.map((each) => row(each, piece, open));
  if (!rows.length) {
    rows.push(Object.assign(document.createElement("li"), { className: "hint", textContent: "Nothing here yet: pieces come by themselves as you open them." }));
  }
  byId("shelf-list").replaceChildren(...rows);
}

function row(saved, piece, open) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const title = Object.assign(document.createElement("strong"), { textContent: saved.name || "Untitled" });
  const takes = saved.session.order.length;
  const day = new Date(saved.updated).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const kept = saved.kept.length ? `, kept: ${saved.kept.join(", ")}` : "";
  const facts = `${day}, ${count(takes, "take")}${kept}${saved.id === piece.id ? ", open now" : ""}`;
  button.append(title, Object.assign(document.createElement("span"), { textContent: facts }));
  button.addEventListener("click", () => {
    byId("shelf-dialog").close();
    open(saved.id).catch(tell);
  });
  const remove = Object.assign(document.createElement("button"), { type: "button", className: "icon" });
  remove.append(document.querySelector("#alert-close svg").cloneNode(true));
  remove.setAttribute("aria-label", `Delete ${saved.name || "Untitled"} from the shelf`);
  remove.title = "Delete from the shelf";
  remove.disabled = saved.id === piece.id;
  remove.addEventListener("click", async () => {
    await store.remove(saved.id);
    await fill(piece, open);
  });
  item.append(button, remove);
  return item;
}
