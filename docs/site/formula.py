"""Formulas as docstrings write them, in Unicode, made into MathML, which browsers set."""

import re

FUNCTIONS = ("log", "exp", "cos", "max", "min")
OPERATORS = ("softmax", "mean", "Var")
SIGNS = {
    "Σ": r"\sum ", "−": "-", "⟨": r"\langle ", "⟩": r"\rangle ", "≠": r"\neq ", "∈": r"\in ",
    "∉": r"\notin ", "⊙": r"\odot ", "·": r"\cdot ", "≤": r"\leq ", "₊": "_{+}", "⁺": "^{+}",
    "²": "^{2}", "∗": "^{*}", "ℓ": r"\ell ", "\ue000": r"\frac{", "\ue001": "}{", "\ue002": "}",
}  # fmt: skip
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "η": "eta",
    "θ": "theta", "λ": "lambda", "π": "pi", "σ": "sigma", "τ": "tau", "φ": "varphi", "ω": "omega",
}  # fmt: skip
# Where a formula ends and words on it begin.
REMARK = re.compile(r": [a-zA-Z`]|, (with|where|plus|over|0|average|the|or)\b| over the ")
# What stands over what, where neither is an expression.
FRACTION = re.compile(r"(?<![\w}])(1|C|ε)/(\|\w+\||\w⁺?)(?= )")
# A name with a subscript of several letters, a parameter's name, a word, or one sign.
TOKEN = re.compile(r"(pos|neg)_margin|`\w+`|_[A-Za-z]+'?|[A-Za-z]{2,}|.", re.DOTALL)


def latex(formula: str) -> str:
    """Write the formula, and the words in it, in LaTeX."""
    found: list[str] = []
    words: list[str] = []

    def end_of_words() -> None:
        if words:
            found.append(rf"\text{{ {' '.join(words)} }}")
            words.clear()

    for match in TOKEN.finditer(FRACTION.sub("\ue000\\1\ue001\\2\ue002", formula)):
        token = match.group()
        parameter = token.endswith("_margin") or token[0] == "`"
        if token.isspace() and words:
            continue
        if parameter or (token.isalpha() and token.isascii() and len(token) > 1):
            if token in FUNCTIONS:
                end_of_words()
                found.append(rf"\{token} ")
            elif token in OPERATORS and not words:
                found.append(rf"\operatorname{{{token}}}")
            else:
                words.append(token.strip("`"))
            continue
        end_of_words()
        if token[0] == "_" and len(token) > 1:
            found.append(f"_{{{token[1:]}}}")
        elif token in GREEK:
            found.append(rf"\{GREEK[token]} ")
        else:
            found.append(SIGNS.get(token, token))
    end_of_words()
    return "".join(found)


def mathml(formula: str) -> str:
    """Return a block of MathML for each equation; on a narrow page it scrolls by itself."""
    from latex2mathml.converter import convert  # the rest of this file is tested without it

    equations = re.split(r", (?=[^(){}]{1,6} = )", formula)
    blocks = [convert(latex(one), display="block") for one in equations]
    return "\n".join([f'<div style="overflow: auto hidden">{block}</div>' for block in blocks])


def split(sentence: str) -> tuple[str, str]:
    """Part the first sentence of a docstring into its formula and what it says of it."""
    depth = 0
    for at, sign in enumerate(sentence):
        depth += (sign in "{([") - (sign in "})]")
        rest = sentence[at:]
        if depth == 0 and REMARK.match(rest):
            return sentence[:at], rest.lstrip(":, ")
    return sentence.rstrip("."), ""
