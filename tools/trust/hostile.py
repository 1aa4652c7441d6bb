"""What an adversary writes: names that are code, operators with effects, sizes that never end."""

from __future__ import annotations

import math
import operator
from functools import cache

import torch

from tools.trust.watch import MARK, VICTIM

CODE = f"__import__('builtins').__dict__.__setitem__('{MARK}',1)"
"""An expression that shows that it ran."""

SHELL = f"__import__('os').system('echo pwned > {VICTIM}')"
"""An expression that changes a file by another program."""

NAMES = (
    *(f"x=exec({CODE!r})", f"x={CODE}", f'a") and {CODE} or ("', f"a') and {CODE} or ('", f"x): {CODE} #"),
    *(f"x\n    {CODE}\n", f"x, y={CODE}", f"x:{CODE}", f"(lambda: {CODE})()", f"{{{CODE}}}", f'"""\n{CODE}\n"""'),
    *(f"'''\n{CODE}\n'''", f"\\\n{CODE}", f"x;{CODE}", f"x\x0c{CODE}", f"x\r{CODE}", f"x\r{CODE}\r"),
    *(f"x\r\n{CODE}\r\n", f"x\r    {CODE}\r    #", f'x"\r{CODE}\r"', f'x", {CODE}) #', f'x"); {CODE} #'),
    *(f"x'); {CODE} #", f'x")\n{CODE}\n("', f"x\u2029{CODE}", f"x\x85{CODE}", f"x\x1c{CODE}", f"x\x0b{CODE}"),
    *(f"x\x00{CODE}", f"\r{SHELL}\r", f'a", {SHELL}, "', "__class__.weight", "__class__.__base__", "__init__"),
    *("__module__", "__slots__", "__reduce__", "__annotations__", "0.__class__.weight", f"x\u2028{CODE}"),
    *(f"%s{CODE}", f"{{self.__class__}}{CODE}", f"__class__.__init__.__globals__[{CODE}]", "__class__", "__dict__"),
    *("__init__.__globals__", "__getattr__", "__call__", "_parameters", "_buffers", "_modules", "training"),
    *("forward", "load", "state_dict", "register_buffer", "to", "eval", "train", "apply", "T_destination"),
    *("_forward_hooks", "_call_impl", "dump_patches", "call_super_init", "self", "cls", "super", "torch", "nn", "F"),
    *("Path", "load_file", "operator", "math", "Tensor", "device", "inf", "nan", "None", "True", "f32", "int"),
    *("list", "print", "exec", "eval", "open", "__import__", "__builtins__", "__name__", "__file__", "class", "def"),
    *("lambda", "await", "match", "type", "_", "__", "a..b", "a.b.", ".a", ".", "..", "", " ", "\t", "\n", "\0"),
    *("a b", "a-b", "1", "1a", "0.0.0", "w0", "B", "%0", "@x", "`", "``", "'", '"', "\\", "\\'", '\\"', "{", "}"),
    *("{}", "{0}", "${x}", "#", "#:", "# type: ignore", "é", "ﬁ", "ａ", "ªº", "\u202e", "\ufeff", "😀", "\ud800"),
    "a" * 300,
    "a." * 2000 + "a",
    "a" * 200_000,
    *("__metadata__", "format", "net", "graph", "return", "call", "param", "buffer", "constant", "frozen", "complex"),
    *("../../victim", "/etc/passwd", f"../nest/{VICTIM}", "victim", "con", "net.py", "arg0", "arg0=1", "*args"),
    *("**kwargs", "/", "*", "x=1", "x: int", "getattr", "_operator_add", "getattr_1", "fn", "weight"),
    *("weight.weight", "0", "0.weight"),
)
"""Names of inputs, keywords, modules, parameters, keys and graphs."""

SIZES = (
    *("9**9**9**9", "2**(2**(2**B))", "B**B**B**B", "10**100000000", "(-1)", "-B", "B-B", "1/0", "B/0", "0**-1"),
    *("Mod(B,0)", "B % 0", "B // 0", "floor(1/0)", "Mod(9**9**9,7)", "Max()", "Min()", "Max(B, 9**9**9)"),
    *("floor(B**999999)", "0", "1", "2**62", "2**63", "2**64", "9" * 5000),
    "B*" * 3000 + "B",
    "(" * 10000 + "B" + ")" * 10000,
    "-" * 10000 + "1",
    "B+" * 500 + "1",
    "floor(" * 2000 + "B" + ")" * 2000,
    *("(B+1)**5000", "(B+C+D+E+F)**60"),
    "Mod(B,3)*" * 60 + "1",
    *("B**0.5", "1.5", "B.x", "x()", "__import__('os')", "(lambda: 1)()", "[1][0]", "B if B else 1", "I", "E", "pi"),
    *("oo", "zoo", "nan", "S", "N", "Q", "0x10", "1_000", "1e3", "1j", "True", "None", "B''", "f'{B}'", "B!", "B:=1"),
    *("*B", "w0=16"),
    "w0=9" + "9" * 5000,
    *("B=8", "b0", "ß", "B**-1", "B/2", "B/3*3", "floor(B/2)", "2*B+1", "B*C", "Mod(B,2)", "65537", "1000003"),
)
"""Sizes and expressions of sizes."""

CONSTANTS = (
    *("0", "1", "-1", "2", "3", "2147483647", "2147483648", "-2147483649", "4294967296", "9223372036854775807"),
    *("9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551616", "1099511627776"),
    *("100000000", "10000000000", "9" * 400, "9" * 5000),
    "-" + "9" * 5000,
    *("0.0", "-0.0", "1.0", "0.5", "1e308", "1e309", "-1e309", "1e-320", "inf", "-inf", "nan", "True", "False"),
    *("None", '""', '"x"', f'"{VICTIM}"', f'"../nest/{VICTIM}"', '"os.system"', f'"{CODE}"', f'"{SHELL}"'),
    *(f'["{CODE}"]', '"cuda"', '"meta"', '"mean"', '"none"', '"\\ud800"', '"\\u0000"', "[]", "[[]]", "[1, 2]"),
    *("[0, 0]", "[-1]", "[1099511627776]", "[9223372036854775807, 9223372036854775807]"),
    "[" * 3000 + "]" * 3000,
    *("[None]", "[1, [2, [3]]]", "f32", "f64", "i64", "bool", "c128", "u8", "qint8", "bits8", "strided"),
    *("sparse_coo", "jagged", "_mkldnn", "cpu", "cuda", "cuda:999", "meta", "mps", "xpu", "mkldnn", "channels_last"),
    *("preserve_format", "complex(0.0, 1.0)", "complex(nan, inf)", "x", "%0", "%1", "%0.0", "%99"),
    "%0.99999999999999999999",
)
"""Constants and references as arguments are written."""

NOTES = (
    *("#: id=-1", "#: id=0"),
    "#: id=9" + "9" * 30,
    "#: id=9" + "9" * 5000,
    *("#: id=1 id=1", '#: module="a.b" line=-5', "#: module=1"),
    "#: history=[" + "[" * 5000,
    *('#: history=["split{width=w0}", 3]', '#: history=["\\ud800"]', "#:", "#: x", "#: =", "#: id=", "#: id=NaN"),
    *("#: id=true", "#: id=1e999", '#: name="y"', '#: born="\\u0000"', f"#: module={NAMES[2]!r}"),
    *('#: module="__class__" kind="x"', '#: module="a..b" kind="torch.nn.Linear"'),
    '#: file="/etc/passwd" line=1 module=""',
    "#: line=" + "9" * 400 + ' module=""',
    *('#: module="training"', '#: module="forward"'),
    "#: id=" + "[" * 20000,
    "#: history=" + '{"a":' * 10000,
)
"""Notes that follow a node."""


@cache
def operator_names() -> tuple[str, ...]:
    """Return every name that could be taken for an operator: those of the dispatcher, and attributes of modules."""
    listed = sorted(n.replace("::", ".") for n in torch._C._dispatch_get_all_op_names())
    modules = {"torch": torch, "operator": operator, "math": math, "aten": torch.ops.aten}
    attributes = [f"{space}.{name}" for space, module in sorted(modules.items()) for name in sorted(dir(module))]
    return (*listed, *attributes)
