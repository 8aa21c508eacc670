// What Markdown's blocks hold once they are complete: texts, definitions, tasks, loose lists, cells.
// Owns: nothing that depends on the next line (blocks.js).

/** A reference's definition, if its target may be linked to; on one line. */
export const DEFINITION =
  /^\[((?:\\.|[^\\[\]]){1,200})\]:[ \t]*<?((?:https?:\/\/|mailto:)[^\s<>]+)>?(?:[ \t]+(?:"([^"]*)"|'([^']*)'|\(([^()]*)\)))?[ \t]*$/i;

/** The cells of a table's row; a pipe inside is written \|. */
export function cells(row) {
  const text = row.trim().replace(/^\|/, "");
  const parts = text.split("|");
  const result = [];
  let cell = "";
  for (const [at, part] of parts.entries()) {
    cell += part;
    const backslashes = part.match(/\\*$/)[0].length;
    if (backslashes % 2 && at < parts.length - 1) {
      cell = `${cell.slice(0, -1)}|`;
    } else {
      result.push(cell.trim());
      cell = "";
    }
  }
  if (result.length > 1 && result.at(-1) === "") result.pop();
  return result;
}

/** The blocks with their texts joined, definitions split off, and lists known as loose or tight. */
export function finished(blocks) {
  return blocks.flatMap((block) => {
    if (block.type === "paragraph") return paragraphs(block);
    if (block.type === "code") block.text = codeText(block);
    if (block.children) block.children = finished(block.children);
    if (block.type === "list") {
      const gap = (nodes) => nodes.some((node, at) => at > 0 && node.start > nodes[at - 1].end + 1);
      block.loose = gap(block.children) || block.children.some((item) => gap(item.children));
      for (const item of block.children) markTask(item);
    }
    return block;
  });
}

function codeText({ fence, lines }) {
  if (fence) return lines.join("\n");
  let end = lines.length;
  while (end > 0 && lines[end - 1].trim() === "") end -= 1;
  return lines.slice(0, end).join("\n");
}

function paragraphs({ lines, start, end }) {
  const result = [];
  while (lines.length > result.length) {
    const text = lines[result.length].trimEnd();
    const found = text.match(DEFINITION);
    if (!found) break;
    const line = start + result.length;
    const [, label, url, ...titles] = found;
    const title = titles.find((part) => part !== undefined) ?? "";
    const part = result.length > 0;
    result.push({ type: "definition", start: line, end: line, part, text, label, url, title });
  }
  const text = lines.slice(result.length).join("\n").trimEnd();
  const part = result.length > 0;
  if (text) result.push({ type: "paragraph", start: start + result.length, end, part, text });
  return result;
}

function markTask(item) {
  const [first] = item.children;
  const found = first?.type === "paragraph" && first.text.match(/^\[([ xX])\]\s+(?=\S)/);
  item.checked = found ? found[1] !== " " : null;
  if (found) first.text = first.text.slice(found[0].length);
}
