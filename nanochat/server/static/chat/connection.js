// Finding the server: which models it has, whether it is up yet, and which key it asks for.

import { authorization, fetchModels, setKey } from "../shared/api.js";
import { byId } from "../shared/dom.js";
import { setUpModels } from "./models.js";
import { dismiss, notify } from "./notices.js";

/** Asks for the models until the server names them. draw() is called then, and when one is chosen. */
export function setUpConnection(draw) {
  byId("key-form").addEventListener("submit", () => {
    setKey(byId("key").value.trim());
    connect(draw);
  });
  connect(draw);
}

async function connect(draw) {
  try {
    setUpModels(await fetchModels(), draw);
  } catch (error) {
    if (error.status === 401) {
      askForKey();
      return;
    }
    notify(error.message, { key: "connection" });
    setTimeout(() => connect(draw), error.status === 503 ? 1000 : 3000);
    return;
  }
  dismiss("connection");
  draw();
}

/** Opens the dialog for the API key; it says so if the server refused one. */
export function askForKey() {
  byId("key-refused").hidden = !("authorization" in authorization());
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}
