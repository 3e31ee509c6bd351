"""What messages of the library advise, in Python, and how that is said on the command line."""

import re
import shlex

# Both by pattern.
_PAIR = re.compile(r"(names|units)=\{'(\w+)': '(\w[^']*)'\}")
_SPELLED = (
    (r"fill='nearest'", "--fill"),
    (r"plausible=False", "--implausible"),
    (r"cyclones=False", "--rivers-only"),
    (r"on_error=.skip.", "--on-error skip"),
)


def as_flags(text: str) -> str:
    """A message in which what it advises is spelled as options of the command."""
    text = _PAIR.sub(lambda found: f"--{found[1]} {shlex.quote(f'{found[2]}={found[3]}')}", text)
    for pattern, flag in _SPELLED:
        text = re.sub(pattern, flag, text)
    return text


class Advised:
    """Errors whose texts may advise; see :class:`exafield.setting.Advising`."""

    def as_flags(self) -> str:
        """The text, in which what it advises is spelled as options."""
        return as_flags(str(self))
