"""The graph IR: types, operators, nodes, graphs, their text form, file and lowering."""
