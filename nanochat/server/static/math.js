// Formulas. TeX is shown as it is written.

/** A formula as an element. */
export function math(tex) {
  const result = document.createElement("code");
  result.textContent = tex;
  return result;
}
