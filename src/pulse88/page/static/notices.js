// What the page says: a quiet status line that screen readers hear, and an alert for what went wrong.

const byId = (id) => document.getElementById(id);

export function status(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

export function alert(text) {
  byId("alert-text").textContent = text;
  byId("alert").hidden = false;
}

export function quiet() {
  byId("alert").hidden = true;
}

/** What a failed action says; errors that are no sentences for people are thrown on. */
export function tell(error) {
  if (error?.name === "AbortError") return;
  alert(error?.message ?? String(error));
}

/** A button whose action may fail with a sentence. */
export function onClick(id, act) {
  byId(id).addEventListener("click", async (event) => {
    try {
      await act(event);
    } catch (error) {
      tell(error);
    }
  });
}

export function prepareNotices() {
  byId("alert-close").addEventListener("click", quiet);
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  // A button that was clicked gives the keys back to the music: space plays, and doesn't press it again.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button, summary");
    if (button && event.detail > 0 && !button.closest("dialog, [popover]")) button.blur();
  });
}
