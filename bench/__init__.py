"""The benchmark of `make bench`: the chat beside a bare Starlette endpoint, in one run.

README.md in this folder says what each figure is and how it is measured.
"""
