"""What a site remembers of every sum that its records ever entered, and the rules that follow.

`rows` are the entries, `rules` are pure functions of rows and a request, `file` is the one place
that touches a disk. docs/protocol.md, section "Across sums", has the promise and its proof.
"""
