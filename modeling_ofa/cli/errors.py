"""The one exception that the `ofa` command turns into a line on stderr."""


class CommandError(Exception):
    """Something the user can mend; its text says what was wrong, where, and what would be right."""


def first_line(error: BaseException, length: int = 400) -> str:
    """Gives the first line of an error's text, cut to `length` characters, or its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= length else f"{lines[0][:length]}…"
