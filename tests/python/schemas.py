"""The schemas of the registered operators as a header for C++, which registers the same in processes without Python.

    python tests/python/schemas.py > cpp/include/ddu/torch/schemas.h

test_package.py fails while that file says anything else. It is one of the sources, since a build has no torch to ask.
"""

import textwrap

from dynamic_dilation_unfold import _dispatch

HEAD = """\
#pragma once

// Made by tests/python/schemas.py, from the descriptions in python/dynamic_dilation_unfold/_operators/: change those.
// What ddu/torch_library.h registers.

namespace ddu::torch_detail::schemas {

// clang-format off
"""
TAIL = """\
// clang-format on

}  // namespace ddu::torch_detail::schemas
"""


def header() -> str:
    lines = []
    for operator in _dispatch.operators:
        for schema in operator.schemas:
            lines.append(f"inline constexpr char {schema.partition('(')[0]}[] =")
            texts = [text.replace('"', '\\"') for text in textwrap.wrap(schema, 110, break_on_hyphens=False)]
            lines += [f'    "{text} "' for text in texts[:-1]]
            lines.append(f'    "{texts[-1]}";')
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    print(header(), end="")
