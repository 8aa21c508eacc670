"""What an answer shows, in a browser: Markdown, formulas, code, tokens; and no text that harms.

The modules run in a page that has nothing but them, under the server's content security policy.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nanochat.server
from nanochat.server.guard import HEADERS
from tests.browser import chromium

STATIC = Path(nanochat.server.__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
BLANK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Test</title>
<link rel="stylesheet" href="shared/style.css"><link rel="stylesheet" href="answer/answer.css">
<main id="box"></main>"""
PIECES = [
    *(
        "a",
        "word ",
        "é",
        "😀",
        "10%",
        "*",
        "**",
        "_",
        "__",
        "~~",
        "`",
        "``",
        "```",
        "~~~\n",
        "\\",
        '"',
    ),
    *("[", "](", "](http://x.y)", ")", "]", "(", "![", "<", "<b>", "<br>", ">", "> ", "&amp;", "&"),
    *(
        "- ",
        "1. ",
        "2) ",
        "[x] ",
        "[ ] ",
        "\n",
        "\n\n",
        "  \n",
        "\t",
        "    ",
        "# ",
        "---",
        "===",
        "\r\n",
    ),
    *(
        "|",
        "|-|\n",
        "a|b\n-|-\n",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "$",
        "$$",
        "\\frac",
        "{",
        "}",
        "^",
        ":",
    ),
    *("http://a.b/c", "https://x/a_(b)", "www.x.y", "[a]: http://q.r\n"),
]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page with the modules of the chat; it lists its `requests` and `problems`."""
    with chromium() as browser:
        opened = browser.new_page(viewport={"width": 800, "height": 800})
        opened.requests, opened.problems = [], []
        opened.on("console", lambda line: opened.problems.append(line.text))
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.route("**/*", lambda route: _answer(route, opened.requests))
        opened.goto("http://page.test/blank")
        opened.evaluate(
            """async () => {
              const names = ["markdown", "math", "highlight", "tokens", "prompt"];
              for (const name of names) Object.assign(window, await import(`./answer/${name}.js`));
              window.box = document.querySelector("#box");
              window.render = (text) => (box.replaceChildren(markdown(text)), box);
              window.depth = (node) => {
                let most = 0;
                for (let stack = [[node, 0]]; stack.length; ) {
                  const [one, own] = stack.pop();
                  most = Math.max(most, own);
                  for (const child of one.childNodes) stack.push([child, own + 1]);
                }
                return most;
              };
            }"""
        )
        yield opened


def _answer(route: Any, requests: list[str]) -> None:
    url = route.request.url
    path = STATIC / url.removeprefix("http://page.test/")
    if url == "http://page.test/blank":
        route.fulfill(body=BLANK, headers={**HEADERS, "content-type": "text/html"})
    elif url.startswith("http://page.test/") and path.is_file():
        route.fulfill(
            body=path.read_bytes(), headers={**HEADERS, "content-type": TYPES[path.suffix]}
        )
    else:
        if not url.endswith("favicon.ico"):
            requests.append(url)
        route.abort()


LINK = ' target="_blank" rel="noopener noreferrer"'


def html(page: Any, text: str) -> str:
    """The HTML of a text, without the attributes that all links and codes have."""
    shown = page.evaluate("(text) => render(text).innerHTML", text)
    return shown.replace(LINK, "").replace('<pre tabindex="0">', "<pre>")


# ---------------------------------------------------------------- Markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# One\n\n### Three #\n\nset\n===", "<h3>One</h3><h5>Three</h5><h3>set</h3>"),
        (
            "*a* _b_ **c** __d__ ***e***",
            "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> "
            "<em><strong>e</strong></em></p>",
        ),
        ("*a **b *c* d** e*", "<p><em>a <strong>b <em>c</em> d</strong> e</em></p>"),
        ("snake_case_name 2*3*4 ~~no~~ ~x~", "<p>snake_case_name 2*3*4 <del>no</del> ~x~</p>"),
        ("\\*a\\* \\# `\\*` `` a`b ``", "<p>*a* # <code>\\*</code> <code>a`b</code></p>"),
        ("a  \nb\\\nc\nd", "<p>a<br>b<br>c\nd</p>"),
        ("- a\n- b\n  1. c\n  2. d", "<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul>"),
        (
            "3. a\n\n   b\n4. c",
            '<ol start="3" class="loose"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>',
        ),
        ("> a\nb\n> > c", "<blockquote><p>a\nb</p><blockquote><p>c</p></blockquote></blockquote>"),
        ("a\n\n---\n\n***", "<p>a</p><hr><hr>"),
        ("<b>x</b> &lt; &copy; &nope;", "<p>&lt;b&gt;x&lt;/b&gt; &lt; © &amp;nope;</p>"),
        (
            "see https://x.y/a_(b), (https://x.y/c).",
            '<p>see <a href="https://x.y/a_(b)">https://x.y/a_(b)</a>, '
            '(<a href="https://x.y/c">https://x.y/c</a>).</p>',
        ),
        (
            '[*a*](http://x.y/(z) "t") <m@x.org>',
            '<p><a href="http://x.y/(z)" title="t"><em>a</em></a> '
            '<a href="mailto:m@x.org">m@x.org</a></p>',
        ),
        (
            "![a cat](http://x.y/c.png)",
            '<p><a href="http://x.y/c.png" class="image">a cat</a></p>',
        ),
        (
            "[a][b] [B]\n\n[b]: http://x.y",
            '<p><a href="http://x.y">a</a> <a href="http://x.y">B</a></p>'
            '<p class="definition">[b]: <a href="http://x.y">http://x.y</a></p>',
        ),
        (
            "```py\na\n\n  b\n```\nc",
            '<div class="code" data-language="py"><pre><code>a\n\n  b</code></pre></div><p>c</p>',
        ),
        (
            "~~~\nopen",
            '<div class="code" data-language=""><pre><code>open</code></pre></div>',
        ),
        (
            "a\n\n    b\n\tc",
            '<p>a</p><div class="code" data-language=""><pre><code>b\nc</code></pre></div>',
        ),
    ],
)
def test_markdown_becomes_elements(page: Any, text: str, expected: str) -> None:
    assert html(page, text) == expected


def test_links_open_a_tab_that_cannot_reach_back(page: Any) -> None:
    page.evaluate("(text) => render(text)", "[a](http://x.y) http://x.y <m@x.org> ![i](http://x.y)")
    links = page.evaluate("[...box.querySelectorAll('a')].map((one) => [one.target, one.rel])")
    assert links == [["_blank", "noopener noreferrer"]] * 4


def test_tasks_are_boxes_that_cannot_be_changed(page: Any) -> None:
    assert html(page, "- [x] a\n- [ ] b\n- [] c") == (
        '<ul><li class="task"><input type="checkbox" disabled="" aria-label="done"> a</li>'
        '<li class="task"><input type="checkbox" disabled="" aria-label="to do"> b</li>'
        "<li>[] c</li></ul>"
    )
    assert page.evaluate("[...box.querySelectorAll('input')].map((one) => one.checked)") == [
        True,
        False,
    ]


def test_tables_align_and_keep_cells_that_have_no_column(page: Any) -> None:
    shown = html(page, "| a | b | c |\n|:-:|--:|---|\n| 1 | `2` | x \\| y | more |\n| <br>z |")
    assert shown == (
        '<div class="table" tabindex="0"><table><thead><tr>'
        '<th class="center">a</th><th class="right">b</th><th>c</th></tr></thead>'
        '<tbody><tr><td class="center">1</td><td class="right"><code>2</code></td>'
        "<td>x | y</td><td>more</td></tr>"
        '<tr><td class="center"><br>z</td><td></td><td></td></tr></tbody></table></div>'
    )


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "java\tscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "//evil.example",
        "/v1/models",
        "file:///etc/passwd",
    ],
)
def test_links_lead_to_http_and_mail_only(page: Any, url: str) -> None:
    html(page, f"[a]({url}) ![b]({url}) <{url}> [c]\n\n[c]: {url}")
    assert page.evaluate("box.querySelectorAll('[href]').length") == 0
    assert "a" in page.inner_text("#box")


def test_no_payload_runs_or_loads_anything(page: Any) -> None:
    payloads = [
        "<script>window.hacked = 1</script>",
        "<img src=x onerror='window.hacked = 1'>",
        "<svg/onload=window.hacked=1>",
        "<iframe src='javascript:parent.hacked = 1'></iframe>",
        "![x](http://evil.example/a.png)",
        '[x](http://a.b "\\" onmouseover=\\"window.hacked=1")',
        "[x](http://a.b/'onclick='window.hacked=1)",
        "```<img/src=x/onerror=window.hacked=1>\n</code></pre><script>window.hacked=1</script>\n```",
        "$\\text{<img src=x onerror=window.hacked=1>}$ $\\href{javascript:alert(1)}{x}$",
        "|<script>window.hacked=1</script>|\n|-|\n|<img src=x onerror=window.hacked=1>|",
        "&lt;script&gt;window.hacked=1&lt;/script&gt; &#60;img src=x onerror=window.hacked=1&#62;",
        "<a href='http://a.b' onclick='window.hacked=1'>x</a><style>*{display:none}</style>",
        "<form action=http://evil.example><input name=a></form><base href=http://evil.example>",
        "- [x] <details open ontoggle=window.hacked=1>",
    ]
    for payload in payloads:
        html(page, payload)
        names = page.evaluate(
            """[...box.querySelectorAll("*")].flatMap(
              (one) => [one.localName, ...one.getAttributeNames()])"""
        )
        assert not {
            "script",
            "img",
            "svg",
            "iframe",
            "style",
            "form",
            "base",
            "details",
            "src",
        } & set(names)
        assert not [name for name in names if name.startswith("on")]
    page.wait_for_timeout(50)
    assert page.evaluate("window.hacked") is None
    assert page.requests == []
    assert page.problems == []


# ---------------------------------------------------------------- texts that harm

PATHOLOGICAL = {
    "quotes": (">" * 16_000, 15_977),
    "quotes with a word": ("> " * 3000 + "end", 2980),
    "stars": ("*" * 8000, 8000),
    "backticks": ("`" * 8000, 8000),
    "brackets": ("[" * 20_000, 20_000),
    "one word": ("a" * 1_000_000, 1_000_000),
    "nested lists": ("\n".join(" " * 2 * i + "- x" for i in range(500)), 500 + 489),
    "lists on one line": ("- " * 20_000 + "x", 19_990),
    "a wide table": ("a|" * 60 + "\n" + "-|" * 60 + "\n" + ("b|" * 60 + "\n") * 200, 60 * 201),
    "too wide a table": ("a|" * 50_000 + "\n" + "-|" * 50_000 + "\nx", 200_001),
    "nested emphasis": ("*" * 4000 + "a" + "*" * 4000, 8001 - 16 * 4),
    "open emphasis": ("*a **b _c " * 5000, 10 * 5000 - 3 * 5000),
    "open links": ("[a](" * 20_000, 80_000),
    "open formulas": ("\\(" * 20_000 + "\\frac{" * 100, None),
    "nested formulas": ("$$" + "\\frac{1}{" * 100 + "}" * 100 + "$$", None),
    "backslashes": ("\\" * 100_000, 50_000),
    "marks of all kinds": ("*_`[<&$~!>#|\n" * 5000, None),
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_no_text_crashes_the_page_or_vanishes(page: Any, name: str) -> None:
    text, count = PATHOLOGICAL[name]
    shown, deep, height = page.evaluate(
        """(text) => {
              render(text);
              return [box.textContent.replace(/\\s/g, "").length, depth(box), box.offsetHeight];
            }""",
        text,
    )
    assert height > 0
    assert deep < 90
    if count is None:
        assert shown > 0
    else:
        assert shown == count


def random_texts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(PIECES, k=generator.randint(1, 50))) for _ in range(count)]


def test_random_texts_lose_no_letter_and_nest_no_deeper_than_allowed(page: Any) -> None:
    # A number, a task's box, a target, a title or a language may hold what the text does not show;
    # of links inside links only the outer target is kept.
    lost = page.evaluate(
        r"""(texts) => texts.filter((text) => {
          render(text);
          let kept = box.textContent;
          for (const one of box.querySelectorAll("*")) {
            for (const { value } of one.attributes) kept += value;
            kept += { li: "12", input: "x", br: "br" }[one.localName] ?? "";
          }
          const counts = new Map();
          const count = (given, step) => {
            for (const char of given.replace(/&amp;/g, "").match(/[\p{L}\p{N}]|😀/gu) ?? []) {
              counts.set(char, (counts.get(char) ?? 0) + step);
            }
          };
          count(kept, 1);
          count(text, -1);
          const nested = /\[[^]*\[[^]*\]\(http/.test(text);
          return depth(box) > 90 || (!nested && [...counts.values()].some((left) => left < 0));
        })""",
        random_texts(1500, seed=1),
    )
    assert lost == []


# ---------------------------------------------------------------- a growing answer


def test_a_text_that_grew_in_pieces_ends_as_if_it_had_come_at_once(page: Any) -> None:
    different = page.evaluate(
        """(texts) => texts.filter((text) => {
          const view = markdownView();
          for (let at = 0; at < text.length; at += 1 + (at * 7) % 5) view.update(text.slice(0, at));
          view.update(text, { final: true });
          return view.element.innerHTML !== render(text).innerHTML;
        })""",
        random_texts(250, seed=2),
    )
    assert different == []


def test_a_growing_answer_redraws_its_last_block_only(page: Any) -> None:
    kept, decorated = page.evaluate(
        """() => {
          const view = markdownView((node) => (decorated += node.localName === "h3"));
          let decorated = 0;
          view.update("# One\\n\\nTwo\\n\\nThree");
          const [heading, second] = view.element.children;
          const text = (at) => `# One\\n\\nTwo\\n\\nThree${" more".repeat(at)}`;
          for (let at = 0; at < 50; at++) view.update(text(at));
          const [first, next] = view.element.children;
          return [heading === first && second === next, decorated];
        }"""
    )
    assert (kept, decorated) == (True, 1)


def test_what_is_scrolled_and_selected_in_a_growing_block_stays(page: Any) -> None:
    scrolled, same, text = page.evaluate(
        """() => {
          const view = markdownView();
          box.replaceChildren(view.element);
          const start = `- one\\n\\n  ~~~\\n  ${"wide ".repeat(99)}\\n`;
          const text = (at) => start + "  x\\n".repeat(at);
          view.update(text(1));
          const code = box.querySelector("pre");
          code.scrollLeft = 70;
          for (let at = 2; at < 9; at++) view.update(text(at));
          return [code.scrollLeft, code === box.querySelector("pre"), code.textContent.slice(-16)];
        }"""
    )
    assert (scrolled, same, text) == (70, True, "x\n" * 8)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("so **bold", "<p>so <strong>bold</strong></p>"),
        ("run `ls", "<p>run <code>ls</code></p>"),
        ("Items:\n-", "<p>Items:</p>"),  # not a heading for a moment
        ("see [this](https://exa", "<p>see [this]</p>"),
        ("text\n```py", "<p>text</p>"),
        ("2 * 3", "<p>2 * 3</p>"),
    ],
)
def test_markup_that_is_not_complete_does_not_flicker(page: Any, text: str, shown: str) -> None:
    assert (
        page.evaluate(
            """(text) => {
              const view = markdownView();
              view.update(text);
              return view.element.innerHTML;
            }""",
            text,
        )
        == shown
    )


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        ("\\frac{a}{2}", "<mfrac><mrow><mi>a</mi></mrow><mrow><mn>2</mn></mrow></mfrac>"),
        ("\\sqrt[3]{x}", "<mroot><mrow><mi>x</mi></mrow><mrow><mn>3</mn></mrow></mroot>"),
        ("x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
        (
            "\\sum_{i}^n",
            '<munderover><mo largeop="true" movablelimits="true">∑</mo>'
            "<mrow><mi>i</mi></mrow><mi>n</mi></munderover>",
        ),
        ("\\int_0^1", '<msubsup><mo largeop="true">∫</mo><mn>0</mn><mn>1</mn></msubsup>'),
        ("\\alpha\\le\\Omega", '<mi>α</mi><mo>≤</mo><mi mathvariant="normal">Ω</mi>'),
        ("\\text{if } 10,5", "<mtext>if&nbsp;</mtext><mn>10,5</mn>"),
        (
            "\\left(x\\right]",
            '<mrow><mo fence="true" stretchy="true">(</mo><mi>x</mi>'
            '<mo fence="true" stretchy="true">]</mo></mrow>',
        ),
        (
            "\\hat y\\mathbb R",
            '<mover accent="true"><mi>y</mi><mo stretchy="false">^</mo></mover><mi>ℝ</mi>',
        ),
        ("\\sin x", '<mi>sin</mi><mspace width="0.167em"></mspace><mi>x</mi>'),
        ("f''", "<msup><mi>f</mi><mo>′′</mo></msup>"),
        (
            "\\begin{matrix}a&b\\\\c\\end{matrix}",
            "<mrow><mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr><mtr><mtd><mi>c</mi></mtd></mtr></mtable></mrow>",
        ),
        (
            "\\begin{cases}a\\end{cases}",
            '<mrow><mo fence="true" stretchy="true">{</mo>'
            '<mtable><mtr><mtd class="left"><mi>a</mi></mtd></mtr></mtable></mrow>',
        ),
        ("\\nope{x}", '<mtext class="unknown">\\nope</mtext><mrow><mi>x</mi></mrow>'),
        ("\\begin{toString}a\\end{toString}", "<mrow><mi>a</mi></mrow>"),
        ("a}b^", "<mi>a</mi><mo>}</mo><msup><mi>b</mi><mrow></mrow></msup>"),
    ],
)
def test_tex_becomes_mathml(page: Any, tex: str, expected: str) -> None:
    assert page.evaluate("(tex) => math(tex).innerHTML", tex) == expected


def test_no_formula_throws_or_nests_too_deep(page: Any) -> None:
    words = [
        "{",
        "}",
        "^",
        "_",
        "'",
        "&",
        "\\\\",
        "[",
        "]",
        "(",
        "a",
        "12",
        "+",
        " ",
        "\\",
        "#",
        "é",
    ]
    names = (
        "frac sqrt left( right) right left. begin{matrix} end{matrix} begin{cases} end begin text{"
    )
    more = "mathbb hat sum limits big( not substack{ displaystyle boxed constructor __proto__ sin x"
    words += [f"\\{name}" for name in f"{names} {more}".split()] + ["\\right\\constructor"]
    generator = random.Random(4)
    formulas = ["".join(generator.choices(words, k=generator.randint(1, 60))) for _ in range(1500)]
    failed = page.evaluate(
        """(formulas) => formulas.filter((tex) => {
          try {
            return depth(math(tex)) > 60;
          } catch {
            return true;
          }
        })""",
        formulas,
    )
    assert failed == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("$x^2$ and \\(y\\)", 2),
        ("$$\n- a\n= b\n$$\n\n\\[c = d\\]", 2),
        ("It costs $5 and $6, or $7-$8.", 0),
        ("echo $HOME/$USER and $PATH", 0),
        ("he paid 5$ and she 6$", 0),
        ("`$x$` and \\$x\\$", 0),
        ("\\[see the note\\]", 0),
    ],
)
def test_formulas_are_told_from_money(page: Any, text: str, count: int) -> None:
    html(page, text)
    assert page.evaluate("box.querySelectorAll('math').length") == count


# ---------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("language", "code", "kinds"),
    [
        (
            "python",
            'def f(): return "x"  # y',
            ["keyword", "function", "keyword", "string", "comment"],
        ),
        ("ts", "const a = `b` // c", ["keyword", "string", "comment"]),
        ("json", '{"a": "b", "c": 1}', ["property", "string", "property", "number"]),
        ("bash", 'if x --y; then echo "$a"', ["keyword", "option", "keyword", "type", "string"]),
        (
            "html",
            '<a href="b">c</a>',
            ["keyword", "property", "string", "keyword", "keyword", "keyword"],
        ),
        ("css", ".a { color: #fff; }", ["type", "property", "number"]),
        ("rust", 'let x: &\'a str = "b";', ["keyword", "variable", "type", "string"]),
        ("c++", "int x = 0x1F; /* y */", ["type", "number", "comment"]),
        ("sql", "SELECT a FROM b -- c", ["keyword", "keyword", "comment"]),
        ("java", "@Override int x;", ["meta", "type"]),
        ("go", 'func f() { return "a" }', ["keyword", "function", "keyword", "string"]),
        ("unknown", "if x", []),
    ],
)
def test_code_is_colored(page: Any, language: str, code: str, kinds: list[str]) -> None:
    shown = page.evaluate(
        """([language, code]) => {
          box.replaceChildren(highlight(code, language));
          return [box.textContent, [...box.children].map((one) => one.className)];
        }""",
        [language, code],
    )
    assert shown == [code, [f"hl-{kind}" for kind in kinds]]


def test_colors_change_no_character_of_any_code(page: Any) -> None:
    changed = page.evaluate(
        """([names, texts]) => names.flatMap((name) => texts.filter((text) => {
          box.replaceChildren(highlight(text, name));
          return box.textContent !== text;
        }))""",
        [
            ["python", "js", "json", "bash", "html", "css", "rust", "c", "sql", "java", "go"],
            random_texts(60, seed=3),
        ],
    )
    assert changed == []


# ---------------------------------------------------------------- tokens and the prompt


def entry(
    token: str, chances: dict[str, float], rank: int = 1, data: list[int] | None = None
) -> dict[str, Any]:
    """An entry of the API's logprobs; the logarithms are made in the page."""
    return {"token": token, "rank": rank, "chances": chances, "bytes": data or list(token.encode())}


ENTRIES = [
    entry("The", {"The": 0.6, "A": 0.2, "It": 0.1, "In": 0.05, "My": 0.01}),
    entry(" cat", {" dog": 0.5, " cat": 0.25}, rank=2),
    entry("<|python_start|>", {"<|python_start|>": 0.9}),
    entry("12\n", {"12\n": 1.0}),
    entry("<|python_end|>", {"<|python_end|>": 0.9}),
    entry(
        "\ufffd",
        {"a": 0.9, "b": 0.01, "c": 0.01, "d": 0.01, "e": 0.01, "\ufffd": 0.001},
        rank=7,
        data=[0xE2, 0x82],
    ),
]
SHOW_TOKENS = """(entries) => {
  const id = (text) => [...text].reduce((sum, char) => sum * 31 + char.codePointAt(0), 7) % 65521;
  const full = entries.map(({ token, rank, chances, bytes }) => ({
    token, rank, bytes, id: id(token), logprob: Math.log(chances[token]),
    top_logprobs: Object.entries(chances).slice(0, 5).map(([text, chance]) => ({
      token: text, id: id(text), logprob: Math.log(chance),
      bytes: [...new TextEncoder().encode(text)],
    })),
  }));
  window.picked = [];
  const onPick = (index, other) => picked.push([index, other.token]);
  box.replaceChildren(tokenView(full, { onPick }));
}"""


def test_tokens_show_their_probability_and_what_they_are(page: Any) -> None:
    page.evaluate(SHOW_TOKENS, ENTRIES)
    tokens = page.locator(".token-text .token")
    assert tokens.all_inner_texts() == [
        "The",
        " cat",
        "<|python_start|>",
        "12↵",
        "<|python_end|>",
        "E2 82",
    ]
    assert tokens.nth(1).get_attribute("aria-label") == "cat, 25.0%, rank 2"
    assert tokens.nth(5).get_attribute("aria-label") == "bytes E2 82, 0.1%, rank 7"
    classes = [one.get_attribute("class").split() for one in tokens.all()]
    assert [own[1] for own in classes] == ["s0", "s1", "s0", "s0", "s0", "s4"]  # by surprise
    assert [own[2:] for own in classes] == [
        [],
        [],
        ["special", "tool-token"],
        ["tool-token"],
        ["special", "tool-token"],
        ["bytes"],
    ]
    assert page.inner_text(".token-head p").startswith("6 tokens · perplexity 4.49")
    assert page.inner_text(".token-head p").endswith("2 of them not the likeliest")


def test_an_alternative_is_picked_by_keys_alone(page: Any) -> None:
    page.evaluate(SHOW_TOKENS, ENTRIES)
    page.locator(".token-text [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert (
        page.locator(".token-text [tabindex='0']").get_attribute("aria-label")
        == "cat, 25.0%, rank 2"
    )
    assert page.locator(".token-card li").all_inner_texts() == [" dog\n50.0%", " cat\n25.0%"]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == "dog, 50.0%: branch from here"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.ariaLabel") == "cat, 25.0%, rank 2"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("picked") == [[1, " dog"]]


def test_the_mouse_shows_a_token_without_getting_in_the_way(page: Any) -> None:
    page.evaluate(SHOW_TOKENS, ENTRIES)
    tokens = page.locator(".token-text .token")
    tokens.nth(0).hover()
    assert len(page.locator(".token-card li").all()) == 5
    tokens.nth(3).hover()  # on the line under the first, below its card
    tokens.nth(5).click()
    assert page.locator(".token-card .taken").inner_text().split() == [
        "E2",
        "82",
        "0.1%",
    ]  # a sixth row
    page.locator(".token-card button").nth(1).click()
    assert page.evaluate("picked") == [[5, "b"]]


def test_alternatives_that_cannot_be_continued_say_why(page: Any) -> None:
    refusing = 'refusal: (index, { token }) => (token === " dog" ? "" : "It barks."), onPick'
    page.evaluate(SHOW_TOKENS.replace("onPick }", f"{refusing} }}"), ENTRIES)
    page.locator(".token-text .token").nth(0).click()
    first = page.locator(".token-card button").first
    assert first.is_disabled()
    assert first.get_attribute("title") == "No branch can start here. It barks."
    assert page.locator(".token-card").inner_text().endswith("No branch can start here. It barks.")
    page.locator(".token-text .token").nth(1).click()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("picked") == [[1, " dog"]]


def test_a_number_and_a_dot_is_a_sentence_and_so_is_what_follows_in_a_line(page: Any) -> None:
    assert html(page, "408.") == "<p>408.</p>"
    drawn = page.evaluate(
        """(texts) => texts.map((text) => {
          const view = markdownView();
          for (let end = 0; end <= text.length; end += 1) {
            view.update(text.slice(0, end), { within: true, final: end === text.length });
          }
          return view.element.innerHTML;
        })""",
        ["408. So", " - 3", "1. a\n\n1. b", "*x*"],
    )
    assert drawn == [
        "<p>408. So</p>",
        "<p>- 3</p>",
        "<p>1. a</p><ol><li>b</li></ol>",
        "<p><em>x</em></p>",
    ]


def test_borders_and_colors_of_tokens_can_be_turned_off(page: Any) -> None:
    page.evaluate(SHOW_TOKENS, ENTRIES)
    for name in ("Surprise", "Borders"):
        button = page.get_by_role("button", name=name)
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
    assert page.locator(".token-text").get_attribute("class") == "token-text"


def test_the_prompt_shows_ids_special_tokens_and_its_share_of_the_context(page: Any) -> None:
    tokens = [
        {"id": 1031, "text": "<|bos|>", "bytes": list(b"<|bos|>"), "special": True},
        {"id": 7, "text": " hi\n", "bytes": list(b" hi\n"), "special": False},
        {"id": 0, "text": "\0", "bytes": [0], "special": False},
        {"id": 195, "text": "\ufffd", "bytes": [195], "special": False},
        {
            "id": 9,
            "text": "<|bos|>",
            "bytes": list(b"<|bos|>"),
            "special": False,
        },  # written by a user
    ]
    page.evaluate(
        "(answer) => box.replaceChildren(promptView(answer))",
        {"tokens": tokens, "count": 5, "max_model_len": 32},
    )
    assert page.inner_text(".prompt-share").strip() == "5 tokens, 16% of the context of 32"
    chips = page.locator(".chip")
    assert [text.split() for text in chips.all_inner_texts()] == [
        ["<|bos|>", "1031"],
        ["hi↵", "7"],
        ["␀", "0"],
        ["C3", "195"],
        ["<|bos|>", "9"],
    ]
    assert [one.get_attribute("class") for one in chips.all()] == [
        "chip special",
        "chip",
        "chip",
        "chip bytes",
        "chip",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Any, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    page.emulate_media(color_scheme=scheme)
    code = "\n".join(
        f"```{name}\nif x: return 'a' // b # c\n```" for name in ("python", "js", "css")
    )
    page.evaluate(SHOW_TOKENS, ENTRIES)
    page.evaluate(
        """(text) => {
          const part = document.createElement("div");
          part.className = "text";
          part.append(markdown(text));
          box.append(part);
          document.querySelector(".token-text .token").focus();
        }""",
        f"# A\n\n- [x] b\n\n|a|b|\n|-|-|\n|1|2|\n\n$x^2$ [l](http://x.y)\n\n[a]: http://x.y\n\n{code}",
    )
    options = {
        "rules": {
            name: {"enabled": False} for name in ("page-has-heading-one", "region", "heading-order")
        }
    }
    found = axe.Axe().run(page, options=options).response["violations"]
    assert [(one["id"], [node["html"][:80] for node in one["nodes"]]) for one in found] == [], (
        json.dumps(found)[:500]
    )
