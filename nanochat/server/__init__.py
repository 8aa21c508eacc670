"""The chat server: an OpenAI-compatible HTTP API and a static page that uses it.

A request passes `guard`, a route of `app`, `fields` and `protocol` (its JSON), `prompts` (what the
engine is asked) and `service` (the engine's thread); the answer comes back through `streaming` and
`responses`. `models` knows which models there are, `errors` how anything that fails is reported.
`runs` shows training runs, also without a model.

The pages are `static/*.html`, served as they are: no build step, nothing from other hosts. `chat/`
is the conversations (start with `app.js`; `conversation.js` is the tree of messages, `store.js`
what the browser keeps), `answer/` what an answer shows (Markdown, formulas, code, tokens),
`dashboard/` the runs, `docs/` the API's description, `shared/` what several of them need.
"""
