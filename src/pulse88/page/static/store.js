// What outlives a reload: pieces with their trees of takes, in the browser's IndexedDB. No server knows of it.

const NAME = "pulse88";
const SPARE = 12; // pieces without a kept take that stay; the oldest go

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pieces", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function inStore(mode, use) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("pieces", mode);
    const request = use(transaction.objectStore("pieces"));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Puts a piece, {id, name, updated, kept: [names], ...}, in the place of the one with its id. */
export async function save(piece) {
  await inStore("readwrite", (store) => store.put(piece));
}

/** All pieces, the latest first. */
export async function pieces() {
  const all = await inStore("readonly", (store) => store.getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const piece = (id) => inStore("readonly", (store) => store.get(id));
export const remove = (id) => inStore("readwrite", (store) => store.delete(id));

/** Lets go of old pieces of which no take is kept. */
export async function tidy() {
  const spare = (await pieces()).filter((each) => !each.kept.length).slice(SPARE);
  for (const each of spare) await remove(each.id);
}

/** Small settings: the theme, the controls. Private windows may refuse to keep them, which costs nothing but memory. */
export const settings = {
  read(name, fallback) {
    try {
      return JSON.parse(localStorage.getItem(`pulse88.${name}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem(`pulse88.${name}`, JSON.stringify(value));
    } catch {
      // Full or forbidden: the setting holds until the page is left.
    }
  },
};
