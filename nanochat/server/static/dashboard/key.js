// The API key, for servers that ask for one; the chat page keeps it in the same place.

import { byId } from "./dom.js";

const KEY = "nanochat.key";

/** Sends the key that this browser keeps with all requests, and lets one be entered. */
export function useKey(then) {
  try {
    setCookie(localStorage.getItem(KEY) ?? "");
  } catch {
    // storage is disabled: it has to be entered again
  }
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key-input").value.trim();
    setCookie(key);
    try {
      localStorage.setItem(KEY, key);
    } catch {
      // as above
    }
    then();
  });
}

// A cookie, as the frame of a report cannot send a header.
function setCookie(key) {
  if (key) document.cookie = `nanochat-key=${encodeURIComponent(key)}; path=/runs; samesite=strict`;
}
