"""The calculator tool: exact arithmetic and letter counts on an expression a model wrote.

Owns: parsing, limits and the format of results. Does not own: tokens or conversations. An
expression is parsed to a syntax tree, of which only the node types listed here are computed:
nothing is executed.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

MAX_EXPRESSION_CHARS = 200
MAX_BITS = 512  # of a numerator or denominator; about 154 decimal digits
MAX_EXPONENT = 256
DECIMAL_PLACES = 6

Value = Fraction | str
V = TypeVar("V", Fraction, str)

_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
# Allowed outside string literals: numbers, operators, parentheses and the names below.
_SKELETON = re.compile(r"(?:[\d\s.,+\-*/%()]|(?<=\d)[eE](?=[+-]?\d)|\bcount\b|\blower\b|\blen\b)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TYPOGRAPHIC = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*"})


class _Refused(Exception):
    """An expression that the calculator does not compute."""


def evaluate(expression: str) -> str | None:
    """Return the value of an arithmetic or string-count expression as text, None if refused.

    Numbers are exact fractions, so 0.1 + 0.2 is "0.3" and 10 / 3 * 3 is "10". An integer result has
    no decimal point; others are rounded to six decimals (six significant digits below 1e-6).
    Strings support `.count("x")`, `.lower()` and `len("word")`. Anything else, anything too long or
    too large, and a division by zero return None.

    >>> evaluate("12 * (3 + 4)"), evaluate("7 / 2"), evaluate("'strawberry'.count('r')")
    ('84', '3.5', '3')
    """
    source = expression.strip()
    if not source or len(source) > MAX_EXPRESSION_CHARS or "\\" in source:
        return None
    if '"' not in source and "'" not in source:
        source = _THOUSANDS.sub("", source.translate(_TYPOGRAPHIC))
    if not _SKELETON.fullmatch(_STRING.sub("()", source)):
        return None
    try:
        value = _value(ast.parse(source, mode="eval").body)
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return _printed(value) if isinstance(value, Fraction) else None


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _checked(Fraction(repr(number)))  # repr: 0.1 is one tenth, not its binary form
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _operand(operand, Fraction)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_operand(operand, Fraction)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            compute = _OPERATORS[type(op)]
            return _checked(compute(_operand(left, Fraction), _operand(right, Fraction)))
        case ast.Call(func=func, args=args, keywords=[]):
            return _call(func, args)
    raise _Refused


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if abs(exponent) > MAX_EXPONENT:
        raise _Refused
    if exponent.denominator == 1:
        if _bits(base) * abs(exponent.numerator) > 2 * MAX_BITS:  # refuse before computing it
            raise _Refused
        return Fraction(base**exponent.numerator)
    if base < 0 or (base == 0 and exponent < 0):
        raise _Refused
    # A root has float precision; 15 digits round 1.4142135623730951 ** 2 to 2.
    return Fraction(format(float(base) ** float(exponent), ".15g"))


_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: Fraction(left // right),
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _call(func: ast.expr, args: list[ast.expr]) -> Value:
    match func, args:
        case ast.Name(id="len"), [argument]:
            return Fraction(len(_operand(argument, str)))
        case ast.Attribute(value=owner, attr="count"), [argument]:
            needle = _operand(argument, str)
            if needle:
                return Fraction(_operand(owner, str).count(needle))
        case ast.Attribute(value=owner, attr="lower"), []:
            return _operand(owner, str).lower()
    raise _Refused


def _operand(node: ast.expr, kind: type[V]) -> V:
    value = _value(node)
    if not isinstance(value, kind):
        raise _Refused
    return value


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _checked(number: Fraction) -> Fraction:
    if _bits(number) > MAX_BITS:
        raise _Refused
    return number


def _printed(number: Fraction) -> str:
    if number.denominator == 1:
        return str(number.numerator)
    if abs(number) < Fraction(1, 10**DECIMAL_PLACES):
        return format(float(number), ".6g")
    scaled = round(abs(number) * 10**DECIMAL_PLACES)
    integer, decimals = divmod(scaled, 10**DECIMAL_PLACES)
    text = f"{integer}.{decimals:0{DECIMAL_PLACES}d}".rstrip("0").rstrip(".")
    return f"-{text}" if number < 0 else text
