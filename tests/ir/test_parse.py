"""What the parser says of texts that are not graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from archir.errors import ParseError
from archir.ir.parse import parse_graph
from archir.ir.text import print_graph
from tests.models.texts import GRAPHS, TEXTS, TOLD

PLAIN = """\
graph net(x: f32[B, 4]) {
  param @a = @b : f32[4, 4]
  %0 = aten.linear(x, @a) : f32[B, 4]
  %1 = aten.split.Tensor(%0, split_size=2, dim=1) : f32[B, 2], f32[B, 2]
  return %0
}"""

ERRORS: list[tuple[str, str, str, str]] = [
    # what is replaced, by what, the error, where its caret points
    ("graph net", "grape net", "expected `graph`, found 'grape'", "grape"),
    ("net(", "(", "expected the name of the graph, found '('", "("),
    ("net(", "f32(", "'f32' cannot be a plain name", "f32"),
    ("x: f32[B, 4])", "x: f32[B, 4], x: f32[B])", "there are two inputs x", "x"),
    ("x: f32[B, 4])", "x: f32[B, 4] y: f32[B])", "expected ',' or ')', found 'y'", "y"),
    ("x: f32[B, 4])", "x)", "expected ':', found ')'", ")"),
    ("x: f32[B, 4])", "`\\q`: f32[B, 4])", "is not a string", "`\\q`"),
    ("x: f32[B, 4]", "x: tensor", "expected a type, found 'tensor'", "tensor"),
    ("x: f32[B, 4]", "x: f33[B, 4]", "'f33' is not an element type", "f33"),
    ("x: f32[B, 4]", "x: int(B, 4)", "int takes one size, not 2", "int"),
    ("x: f32[B, 4]", "x: f32[B, four!]", "'four!' is not a size", "four!"),
    ("x: f32[B, 4]", "x: f32[B,, 4]", "'' is not a size", ","),
    ("x: f32[B, 4]", "x: f32[B, -4]", "'-4' is not a size", "-4"),
    ("f32[4, 4]", f"f32[{2**62}, {2**62}]", "cannot make a tensor", "@a"),
    ("x: f32[B, 4]", "x: f32[B, w=four]", "'w=four' gives w no size", "w=four"),
    ("x: f32[B, 4]", "x: f32[w=3, w=4]", "w is 3, not 4", "w=4"),
    ("x: f32[B, 4])", "x: f32[B, 4", "'[' is never closed", "["),
    ("f32[4, 4]", "int", "a stored tensor cannot be int", "int"),
    ("f32[4, 4]", "f32[4, w]", "the stored tensor @a cannot be f32[4, w]", "@a"),
    ("@a = @b", "@a = @a", "@a is introduced twice", "@a"),
    ("@a = @b", "@a = b", "expected a stored tensor, `@name`, found 'b'", "b"),
    ("%0 =", "mode fast\n%0 =", "expected `train` or `eval`, found 'fast'", "fast"),
    ("%0 =", "mode eval but a\n%0 =", "expected a module, `@name`, found 'a'", "a"),
    ("%0 =", "mode eval but @a, @a\n%0 =", "@a stands twice", "@a"),
    ("%0 =", "mode eval\nmode eval\n%0 =", "expected a call, a declaration or `return`, found 'mode'", "mode"),
    ("%0 =", "@a[4, 4]\n%0 =", "expected a call, a declaration or `return`, found '@a'", "@a"),
    ("%0 =", "param @c @a : f32[1]\n%0 =", "expected ':', found '@a'", "@a"),
    ("linear(x, @a)", "linear(x, @c)", "@c is not introduced", "@c"),
    ("linear(x, @a)", "linear(x, @a[4, 4])", "@a is introduced twice", "@a"),
    ("linear(x, @a)", "linear(x, @c: 3[4, 4])", "expected an element type, found '3'", "3"),
    ("linear(x, @a)", "linear(x, buffer x)", "expected a stored tensor, `@name`, found 'x'", "x"),
    ("linear(x, @a)", "linear(x, @c[5, 3])", "aten.linear.default rejects its operands", "aten.linear"),
    ("aten.linear", "aten.liner", "there is no operator 'aten.liner'", "aten.liner"),
    ("aten.linear", "atn.linear", "there is no operator 'atn.linear'", "atn.linear"),
    ("aten.linear", "aten.linear.Tensor", "there is no operator 'aten.linear.Tensor'", "aten.linear.Tensor"),
    ("aten.linear", "linear", "there is no operator 'linear'", "linear"),
    ("aten.linear", "torch.nn", "there is no operator 'torch.nn'", "torch.nn"),
    ("aten.linear(", "3(", "expected an operator, found '3'", "3"),
    ("linear(x, @a)", "linear(x)", "aten.linear.default needs an argument 'weight'", "aten.linear"),
    ("linear(x, @a)", "linear(x, @a, None, 3)", "aten.linear.default takes 3 arguments, not 4", "aten.linear"),
    ("linear(x, @a)", "linear(x, wait=@a)", "aten.linear has no argument 'wait'", "wait"),
    ("linear(x, @a)", "linear(x, input=x)", "the argument 'input' is given twice", "input"),
    ("linear(x, @a)", "linear(input=x, @a)", "arguments without a name come first", "@a"),
    ("linear(x, @a)", "linear(y, @a)", "y is neither an input nor a constant", "y"),
    ("linear(x, @a)", "linear(x @a)", "expected ',' or ')', found '@a'", "@a"),
    ("linear(x, @a)", "linear(x, =)", "expected a value or a constant, found '='", "="),
    ("linear(x, @a)", "linear(x, complex(1))", "a complex number has two parts", "complex"),
    ("linear(x, @a)", "linear(x, complex(x, x))", "expected a number, found 'x'", "x"),
    ("linear(x, @a)", 'linear(x, "\\q")', "is not a string", '"\\q"'),
    ("linear(x, @a)", "linear(%1, @a)", "%1 is not defined before it is used", "%1"),
    ("split.Tensor(%0", "split.Tensor(%7", "%7 is not defined before it is used", "%7"),
    ("return %0", "return %1", "%1 is not a result of aten.split.Tensor", "%1"),
    ("return %0", "return %1.2", "%1.2 is not a result of aten.split.Tensor", "%1.2"),
    ("%1 =", "%0 =", "%0 is defined twice", "%0"),
    ("%1 =", "%1.0 =", "%1.0 is one result", "%1.0"),
    (": f32[B, 4]\n", ": f32[B, 5]\n", "aten.linear makes f32[B, 4]", "f32[B, 5]"),
    (": f32[B, 2], f32[B, 2]", ": f32[B, 2]", "aten.split.Tensor makes f32[B, 2], f32[B, 2]", "f32[B, 2]"),
    (": f32[B, 2], f32[B, 2]", ": ()", "aten.split.Tensor makes f32[B, 2], f32[B, 2]", "()"),
    ("return %0", "return f32", "f32 can be neither called with nor returned", "f32"),
    ("return %0", "return {y: %0}", "expected a key, \"name\", found 'y'", "y"),
    ("return %0", 'return {"y" %0}', "expected ':', found '%0'", "%0"),
    ("return %0", "return (%0, %0", "expected ',' or ')', found '}'", "}"),
    ("return %0", "", "expected a call, a declaration or `return`, found '}'", "}"),
    ("return %0", "call (x)\n  call (x)\n  return %0", "expected a call, a declaration", "call"),
    ("return %0", "call ()\n  return %0", "each input stands once in `call`", "call"),
    ("return %0", "call (x, x)\n  return %0", "each input stands once in `call`", "call"),
    ("return %0", "call (%0)\n  return %0", "%0 is not an input", "%0"),
    ("return %0", "call (a=x, x)\n  return %0", "arguments without a name come first", "x"),
    ("return %0\n}", "return %0\n} }", "expected nothing after the graph, found '}'", "}"),
    ("return %0\n}", "return %0", "expected '}', found the end of the text", ""),
    ("return %0", "return $0", "expected a value or a constant, found '$'", "$"),
    ("return %0", "return %0  #: id=0 id=", "the note gives 'id' no value", "#: id=0 id="),
    ("return %0", "return %0  #: place=3", "this note does not fit a node", "#: place=3"),
    ("return %0", "return %0  #: id=true", "this note does not fit a node", "#: id=true"),
    ("return %0", "return %0  #: history=[]", "this note does not fit a node", "#: history=[]"),
    ("4]) {", "4]) { #: history=3", "this note is not a history", "#: history=3"),
    ("4]) {", "4]) { #: id=3", "this note is not a history", "#: id=3"),
]


@pytest.mark.parametrize(("old", "new", "what", "caret"), ERRORS)
def test_an_error_says_what_and_points_at_it(old: str, new: str, what: str, caret: str) -> None:
    assert old in PLAIN
    with pytest.raises(ParseError) as caught:
        parse_graph(PLAIN.replace(old, new, 1))
    assert what in caught.value.what
    place, line, mark = caught.value.where.split("\n")
    start = len(mark) - len(mark.lstrip())
    assert line[start : start + len(mark.strip())] == caret or (caret == "" and mark.strip() == "^")
    assert place.endswith(f"column {start - 4 + 1}")


def test_the_text_the_errors_are_made_from_is_a_graph() -> None:
    assert len(parse_graph(PLAIN)) == 5


def test_an_error_is_shown_with_line_column_caret_and_mend() -> None:
    with pytest.raises(ParseError) as caught:
        parse_graph(PLAIN.replace("aten.linear", "aten.liner"))
    assert str(caught.value).splitlines()[:5] == [
        "there is no operator 'aten.liner'",
        "  where: line 3, column 8",
        "      %0 = aten.liner(x, @a) : f32[B, 4]",
        "           ^^^^^^^^^^",
        "  hint:  did you mean aten.linear or aten.inner or aten.bilinear?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("linear(x, @a)", "linear(%3, @a)", "no value is defined so far"),
        ("split.Tensor(%0", "split.Tensor(%3", "the values so far are %0"),
        ("linear(x, @a)", "linear(x, @c.a)", "did you mean a?"),
        ("linear(x, @a)", "linear(x, weigth=@a)", "did you mean weight?"),
        ("f32[B, 4]\n", "f32[B, 5]\n", "write f32[B, 4]"),
        ("return %0", "return %1", "it has %1.0, %1.1"),
        ("return %0", "return y", "known: x"),
        ("x: f32", "x: f33", "known: f64, f32"),
        ("graph net(", "graph cpu(", "write `cpu`"),
    ],
)
def test_an_error_says_how_to_mend_it(old: str, new: str, hint: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_graph(PLAIN.replace(old, new, 1))
    assert hint in caught.value.hint


def test_the_notes_of_a_line_are_not_shown_in_errors_elsewhere_on_it() -> None:
    with pytest.raises(ParseError) as caught:
        parse_graph(TOLD.replace("aten.linear", "aten.liner"))
    assert "#:" not in caught.value.where


def test_an_operator_that_cannot_be_inferred_needs_its_types() -> None:
    with pytest.raises(ParseError, match="write the types"):
        parse_graph("graph net(x: f32[B, 3]) {\n  %0 = aten.nonzero(x)\n  return %0\n}")


def test_an_undefined_stored_tensor_before_any_other() -> None:
    with pytest.raises(ParseError, match=r"give its shape where it is first used, @w\[\.\.\.\]$"):
        parse_graph("graph net(x: f32[B, 3]) {\n  %0 = aten.linear(x, @w)\n  return %0\n}")


def test_ids_are_unique() -> None:
    with pytest.raises(ParseError, match="two nodes have the id 10"):
        parse_graph(TOLD.replace("id=15", "id=10"))


def test_nodes_without_an_id_come_after_those_with_one() -> None:
    text = TOLD.replace("  #: id=25", "").replace("  #: id=0", "")
    assert {n.op: n.id for n in parse_graph(text).nodes}["output"] == 22
    assert [n.id for n in parse_graph(text).inputs] == [5, 21]


def test_given_tensors_are_used_and_must_fit() -> None:
    weight = torch.arange(16.0).reshape(4, 4)
    assert parse_graph(PLAIN, {"a": weight, "more": weight}).tensor("b") is not None
    assert torch.equal(parse_graph(PLAIN, {"a": weight}).tensor("b"), weight)
    with pytest.raises(ParseError, match="there is no tensor for @a"):
        parse_graph(PLAIN, {"b": weight})
    with pytest.raises(ParseError, match=r"the tensor for @a is f64\[4, 4\], not f32\[4, 4\]"):
        parse_graph(PLAIN, {"a": weight.double()})


SEEDS = [*TEXTS.values(), TOLD, print_graph(GRAPHS["nested"](), locations=True)]
PIECES = st.sampled_from(
    [*'()[]{},:=%@#`"\\ \n-0.', "#:", "w=", "return", "call", "param", "buffer", "f32[", "\x00", "²"]
)


@given(st.sampled_from(SEEDS), st.integers(0), st.integers(0, 9), PIECES)
@example(PLAIN, 20, 0, "²")
def test_a_damaged_text_is_a_graph_or_a_parse_error(text: str, at: int, gone: int, new: str) -> None:
    start = at % len(text)
    damaged = text[:start] + new + text[start + gone :]
    try:
        graph = parse_graph(damaged)
    except ParseError:
        return
    assert str(parse_graph(str(graph))) == str(graph)
