// TeX's names for characters. Owns: the tables. Does not own: where they may stand (math.js).

/** "name char name char ..." as an object, which has no "constructor" that TeX could name. */
function table(text) {
  const parts = text.trim().split(/\s+/);
  const entries = parts.flatMap((name, at) => (at % 2 ? [] : [[name, parts[at + 1]]]));
  return Object.assign(Object.create(null), Object.fromEntries(entries));
}

/** Letters and what stands like a letter. */
export const IDENTIFIERS = table(`
  alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ
  nu ν xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω
  Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω
  infty ∞ partial ∂ nabla ∇ hbar ℏ ell ℓ Re ℜ Im ℑ wp ℘ aleph ℵ beth ℶ emptyset ∅ varnothing ∅ imath ı jmath ȷ
  angle ∠ triangle △ square □ Box □ blacksquare ■ diamond ⋄ star ⋆ top ⊤ bot ⊥ degree ° dots … ldots … cdots ⋯
  vdots ⋮ ddots ⋱ dotsc … dotsb ⋯ prime ′ hslash ℏ complement ∁ clubsuit ♣ heartsuit ♥ spadesuit ♠ diamondsuit ♦
  pounds £ S § checkmark ✓ dagger † ddagger ‡ % % $ $ # # & & _ _ eth ð
`);

/** Signs between or before letters. */
export const OPERATORS = table(`
  pm ± mp ∓ times × div ÷ cdot ⋅ ast ∗ circ ∘ bullet ∙ oplus ⊕ ominus ⊖ otimes ⊗ oslash ⊘ odot ⊙ wedge ∧ land ∧ vee ∨
  lor ∨ cap ∩ cup ∪ setminus ∖ backslash ∖ amalg ⨿ sqcap ⊓ sqcup ⊔ uplus ⊎ neg ¬ lnot ¬ forall ∀ exists ∃ nexists ∄
  leq ≤ le ≤ leqslant ⩽ geq ≥ ge ≥ geqslant ⩾ neq ≠ ne ≠ equiv ≡ approx ≈ cong ≅ sim ∼ simeq ≃ propto ∝ ll ≪ gg ≫ lt < gt >
  asymp ≍ doteq ≐ triangleq ≜ coloneqq ≔ prec ≺ succ ≻ preceq ⪯ succeq ⪰ in ∈ notin ∉ ni ∋ subset ⊂ supset ⊃ subseteq ⊆
  supseteq ⊇ subsetneq ⊊ supsetneq ⊋ nsubseteq ⊈ mid ∣ nmid ∤ parallel ∥ perp ⊥ vdash ⊢ dashv ⊣ models ⊨ vDash ⊨
  therefore ∴ because ∵ to → rightarrow → leftarrow ← gets ← leftrightarrow ↔ Rightarrow ⇒ implies ⟹ Leftarrow ⇐
  impliedby ⟸ Leftrightarrow ⇔ iff ⟺ mapsto ↦ longmapsto ⟼ longrightarrow ⟶ longleftarrow ⟵ uparrow ↑ downarrow ↓
  updownarrow ↕ Uparrow ⇑ Downarrow ⇓ hookrightarrow ↪ hookleftarrow ↩ rightharpoonup ⇀ rightleftharpoons ⇌ leadsto ⇝
  nearrow ↗ searrow ↘ swarrow ↙ nwarrow ↖ colon : surd √ lhd ⊲ rhd ⊳ bowtie ⋈ wr ≀ trianglelefteq ⊴ Longrightarrow ⟹
  Longleftarrow ⟸ Longleftrightarrow ⟺ lesssim ≲ gtrsim ≳ nleq ≰ ngeq ≱ ltimes ⋉ rtimes ⋊ smallsetminus ∖
`);

/** Large in a formula of its own; their scripts stand above and below, but for integrals. */
export const BIG_OPERATORS = table(`
  sum ∑ prod ∏ coprod ∐ int ∫ iint ∬ iiint ∭ oint ∮ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigodot ⨀ bigvee ⋁
  bigwedge ⋀ bigsqcup ⨆ biguplus ⨄
`);

/** Brackets. */
export const FENCES = table(`
  { { } } lbrace { rbrace } lbrack [ rbrack ] langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ vert | lvert | rvert |
  Vert ‖ lVert ‖ rVert ‖ | ‖ lgroup ⟮ rgroup ⟯
`);

export const FUNCTIONS = new Set(
  ("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth exp log ln lg det dim ker deg gcd lcm hom arg max min " +
    "sup inf lim limsup liminf argmax argmin Pr softmax").split(" "),
);

/** Functions whose scripts stand below. */
export const LIMITS = new Set("det gcd max min sup inf lim limsup liminf argmax argmin Pr".split(" "));

/** name: [mark, whether it stands below] */
export const ACCENTS = {
  hat: ["^"], widehat: ["^"], bar: ["¯"], overline: ["‾"], vec: ["→"], overrightarrow: ["→"], overleftarrow: ["←"],
  dot: ["˙"], ddot: ["¨"], tilde: ["~"], widetilde: ["~"], check: ["ˇ"], breve: ["˘"], acute: ["´"], grave: ["`"],
  mathring: ["˚"], overbrace: ["⏞"], underbrace: ["⏟", true], underline: ["_", true],
};

export const SPACES = {
  ",": "0.167em", ":": "0.222em", ">": "0.222em", ";": "0.278em", "!": "-0.167em", " ": "0.333em", quad: "1em", qquad: "2em",
  thinspace: "0.167em", enspace: "0.5em", "\n": "0.333em",
};

// Unicode's mathematical letters: where A, a and 0 are, and the letters that had a place before.
const ALPHABETS = {
  bold: [0x1d400, 0x1d41a, 0x1d7ce, {}],
  double: [0x1d538, 0x1d552, 0x1d7d8, { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" }],
  script: [0x1d49c, 0x1d4b6, 0, { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" }],
  fraktur: [0x1d504, 0x1d51e, 0, { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" }],
  sans: [0x1d5a0, 0x1d5ba, 0x1d7e2, {}],
  mono: [0x1d670, 0x1d68a, 0x1d7f6, {}],
};
const BOLD_GREEK = { upper: 0x1d6a8, lower: 0x1d6c2 };

/** A letter or digit in a font: "bold", "double", "script", "fraktur", "sans", "mono", or as it is. */
export function styled(char, font) {
  const alphabet = ALPHABETS[font];
  if (!alphabet) return char;
  const [upper, lower, digit, others] = alphabet;
  if (Object.hasOwn(others, char)) return others[char];
  const point = char.codePointAt(0);
  if (/[A-Z]/.test(char)) return String.fromCodePoint(upper + point - 65);
  if (/[a-z]/.test(char)) return String.fromCodePoint(lower + point - 97);
  if (/\d/.test(char) && digit) return String.fromCodePoint(digit + point - 48);
  if (font === "bold" && /[Α-Ω]/.test(char)) return String.fromCodePoint(BOLD_GREEK.upper + point - 0x391);
  if (font === "bold" && /[α-ω]/.test(char)) return String.fromCodePoint(BOLD_GREEK.lower + point - 0x3b1);
  return char;
}
